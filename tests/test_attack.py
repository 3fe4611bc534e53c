"Odd input of an afternoon's attack, by kind: each is refused in a sentence, and no number comes out that nobody gave"
import os
import numpy as np, pandas as pd, pytest
from promptbench.base.core import UserError, write_atomic
from promptbench.base.mend import plain_words
from promptbench.base.own import atomic_folder, check_place
from promptbench.base.published import load_paper
from promptbench.measure.evaluate import by_dataset
from promptbench.stats.bootstrap import bootstrap_arg
from promptbench.stats.claims import load_claims
from promptbench.stats.metrics import arg, arg_table, relative_gain
from promptbench.stats.query import results
from promptbench.stats.results import read_rows, write_predictions, write_rows
from promptbench.studies.table1 import Settings

def rows(**change)->pd.DataFrame:
    of = dict(dataset=['a','a','b','b'], template=['t','u']*2)
    return pd.DataFrame(of|dict(
        suite='s', backbone='b', method='none', prompt='none', shots=0, seed=0, cluster='c', metric='accuracy', value=.5, n=10,
        chance=.5, majority=.6, run='r')|change)

def predictions(**change)->pd.DataFrame:
    n = 20
    of = dict(template=['t','u']*(n//2), instance=[str(i//2) for i in range(n)], gold=[i%3%2 for i in range(n)], pred=[i%2 for i in range(n)])
    right = [g==p for g,p in zip(of['gold'], of['pred'])]
    return pd.DataFrame(of|dict(
        run='r', suite='s', backbone='b', method='none', prompt='none', shots=0, seed=0, cluster='c', dataset='d', correct=right,
        scores_sum=[[.1,.2]]*n, scores_mean=[[.1,.2]]*n)|change)

CELL = dict(method='none', prompt='none', shots=0)
def twice(df, column): return pd.concat([df, df[[column]]], axis=1)
def gain(**change): return relative_gain(rows(), rows(**change))
def boot(**options): return bootstrap_arg(predictions(), CELL, **options)
def asked(path, **options): return results(write_rows(rows(), path/'rows.parquet'), **options)
def claims(path, text):
    (path/'c.yaml').write_text(text)
    return load_claims(path/'c.yaml')

ODD = { # what is odd: how it is given (to a folder), words of the answer
    # numbers that would have become others
    'shots of 300 digits': (lambda p: write_rows(rows(shots=1e300), p/'x'), '63 bits'),
    'a seed of 64 bits': (lambda p: write_rows(rows(seed=2.**63), p/'x'), '63 bits'),
    'n beyond 64 bits': (lambda p: write_rows(rows(n=[10**30]*4), p/'x'), 'n'),
    'shots below 0': (lambda p: write_rows(rows(shots=-1), p/'x'), 'at least 0'),
    'complex values': (lambda p: write_rows(rows(value=.5+1j), p/'x'), 'complex'),
    'a baseline near 0': (lambda p: gain(value=1e-320), 'too near 0'),
    'a group that is None': (lambda p: arg(rows(), baseline='chance', groups={'a': None}), 'name of a group'),
    'a group that is nan': (lambda p: arg(rows(), baseline='chance', groups={'a': float('nan')}), 'name of a group'),
    # names that are no names
    'bytes': (lambda p: write_rows(rows(dataset=[b'a',b'a',b'b',b'b']), p/'x'), 'bytes'),
    'lists': (lambda p: write_rows(rows(template=[(1,),(2,),(1,),(2,)]), p/'x'), 'tuple'),
    'half a character': (lambda p: write_rows(rows(dataset=pd.Series(['\ud800','\ud800','b','b'], dtype=object)), p/'x'), 'utf-8'),
    # scores that are none
    'no scores': (lambda p: write_predictions(predictions(scores_sum=[None]*20), p/'x'), 'scores_sum'),
    'scores of text': (lambda p: write_predictions(predictions(scores_sum=[['a','b']]*20), p/'x'), 'lists of numbers'),
    'scores in scores': (lambda p: write_predictions(predictions(scores_sum=[[[1.]]]*20), p/'x'), 'lists of numbers'),
    'a number for scores': (lambda p: write_predictions(predictions(scores_mean=3.), p/'x'), 'lists of numbers'),
    'scores that cannot be counted': (lambda p: bootstrap_arg(predictions(scores_sum=3.), CELL), 'list of numbers'),
    # tables that are none
    'no table': (lambda p: write_rows(None, p/'x'), 'rows'),
    'a list for rows': (lambda p: arg_table([1], baseline='chance'), 'rows'),
    'None for predictions': (lambda p: bootstrap_arg(None, CELL), 'predictions'),
    'no predictions': (lambda p: bootstrap_arg(predictions()[:0], CELL), 'at least one'),
    'a column twice': (lambda p: bootstrap_arg(twice(predictions(), 'correct'), CELL), 'different names'),
    'a column of rows twice': (lambda p: write_rows(twice(rows(), 'value'), p/'x'), 'different names'),
    'rows of another kind': (lambda p: by_dataset(predictions()), "missing ['value', 'n'"),
    'an empty baseline': (lambda p: arg(rows(), baseline=pd.DataFrame()), 'baseline'),
    'a baseline without values': (lambda p: arg(rows(), baseline=rows().drop(columns='value')), "missing ['value']"),
    # options of another kind
    'groups that are a list': (lambda p: arg(rows(), baseline='chance', groups=['a']), 'groups'),
    'groups that are lists': (lambda p: arg(rows(), baseline='chance', groups={'a': ['g']}), 'name of a group'),
    'a level of text': (lambda p: boot(level='95%'), '95 % is .95'),
    'a million million resamples': (lambda p: boot(n=10**12), 'at most 10,000,000'),
    'None to resample': (lambda p: boot(resample=None), 'resample'),
    'None for a cell': (lambda p: bootstrap_arg(predictions(), None), 'name it as'),
    'SQL that is a number': (lambda p: asked(p, sql=3), 'SQL'),
    'SQL that is half a character': (lambda p: asked(p, sql="select '\ud800'"), 'UTF-8'),
    'a number of methods': (lambda p: Settings(methods=3), 'write a list'),
    'text for shots': (lambda p: Settings(shots='0,16'), 'write a list'),
    # files that are none
    'claims without an end': (lambda p: claims(p, 'claims: '+'['*9000), 'YAML file of claims'),
    'claims with a wrong date': (lambda p: claims(p, 'claims: [2020-99-99]'), 'YAML file of claims'),
    'a folder without papers': (lambda p: load_paper('table1', p), 'name another folder'),
}

@pytest.mark.parametrize('kind', ODD, ids=lambda k: k.replace(' ','-'))
def test_what_is_odd_is_refused(tmp_path, kind):
    give,words = ODD[kind]
    with pytest.raises(UserError) as e: give(tmp_path)
    assert words in str(e.value) and len(str(e.value))<600, str(e.value)
    assert not (tmp_path/'x').exists()

def test_numbers_may_still_name_things(tmp_path):
    back = read_rows(write_rows(rows(dataset=[1,1,2,2], template=np.array([1,2,1,2]), seed=2**62), tmp_path/'x'))
    assert list(back.dataset)==['1','1','2','2'] and set(back.seed)=={2**62}

@pytest.mark.parametrize('name', ['x'*255, 'ü'*127, '-x', 'a\nb'], ids=['long','long-in-bytes','dash','line'])
def test_every_name_the_disk_allows_can_be_written(tmp_path, name):
    with atomic_folder(tmp_path/name) as f: (f/'a').write_text('1')
    with atomic_folder(tmp_path/name) as f: (f/'a').write_text('2')
    assert os.listdir(tmp_path)==[name] and (tmp_path/name/'a').read_text()=='2'
    (tmp_path/'files').mkdir()
    assert write_atomic(tmp_path/'files'/name, 'b').read_text()=='b'

def test_links_in_a_circle_are_one_line(tmp_path):
    (tmp_path/'l').symlink_to(tmp_path/'l')
    with pytest.raises((UserError,RuntimeError,OSError)) as e: check_place(tmp_path/'l')
    assert str(tmp_path/'l') in plain_words(e.value)
    assert plain_words(RuntimeError('something else')) is None

def test_a_note_whose_name_is_damaged_is_not_lost_without_a_word(tmp_path):
    import pyarrow.parquet as pq
    path = write_rows(rows(cut=.5), tmp_path/'rows.parquet')
    table = pq.read_table(path)
    odd = table.rename_columns(['cuu' if c=='cut' else c for c in table.column_names])
    pq.write_table(odd.replace_schema_metadata({b'promptbench': b'rows/1'}), path)
    with pytest.raises(UserError, match="not known \\['cuu'\\]"): read_rows(path)

ENDLESS = 'with recursive t(i) as (select 1 union all select i+1 from t) select count(*) from t'

def test_a_query_without_end_is_ended(tmp_path, monkeypatch):
    monkeypatch.setenv('PROMPTBENCH_MAX_ANSWER_SECONDS', '1')
    with pytest.raises(UserError, match='takes too long'): asked(tmp_path, sql=ENDLESS)
    assert len(asked(tmp_path, sql='select * from rows'))==4

def test_ctrl_c_in_a_query_is_ctrl_c(tmp_path, monkeypatch):
    import signal, threading
    monkeypatch.setenv('PROMPTBENCH_MAX_ANSWER_SECONDS', '60')
    before = signal.signal(signal.SIGINT, signal.default_int_handler) # a shell may have started us with the signal ignored
    threading.Timer(1, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT]).start()
    try:
        with pytest.raises(KeyboardInterrupt): asked(tmp_path, sql=ENDLESS)
    finally: signal.signal(signal.SIGINT, before)

PAGE_VALUES = { # parameter, as typed -> words of the answer; None: taken
    'x=1e999': 'what JSON has', 'x='+'9'*4000: 'what JSON has', 'any=b"x"': 'what JSON has', 'any=1j': 'what JSON has', 'any=...': 'what JSON has',
    'any={1,2}': 'what JSON has', 'd={1: 2}': 'what JSON has', 'd={"a": [1e999]}': 'what JSON has', 'd={[]: 1}': 'must be dict', 'n='+'9'*5000: 'must be int',
    'n='+'['*5000: 'must be int', 'n='+'-'*50000+'1': 'must be int', 'any=[1, "a", None, {"b": .5}]': None, 'd={"a": 1}': None, 'x=2': None}

@pytest.mark.parametrize('typed', PAGE_VALUES, ids=lambda t: t[:20].replace(' ', ''))
def test_values_of_a_page(tmp_path, typed):
    import nbformat.v4 as v4, nbformat
    from promptbench.cli.runs import given_parameters
    cell = v4.new_code_cell('n = 1\nx = 0.5\nd = {}\nany = None', metadata=dict(tags=['parameters']))
    nbformat.write(v4.new_notebook(cells=[cell]), page := tmp_path/'p.ipynb')
    if (words := PAGE_VALUES[typed]) is None:
        assert given_parameters(page, [typed], [])
        return
    with pytest.raises(UserError, match=words) as e: given_parameters(page, [typed], [])
    assert '\n' not in str(e.value) and len(str(e.value))<400

def test_a_parameter_given_twice_is_refused():
    from promptbench.cli.runs import split_words
    with pytest.raises(UserError, match="'n' is given twice"): split_words(['n=1','n'], ['2'])

@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='this system has no named pipes')
@pytest.mark.parametrize('name', ['rows.parquet','sweep.yaml'])
def test_a_pipe_is_no_file_to_wait_for(tmp_path, name):
    from promptbench.engine.grid import read_sweep
    os.mkfifo(tmp_path/name)
    with pytest.raises(UserError, match='a pipe or a device; name a file'): read_rows(tmp_path/name) if name.endswith('parquet') else read_sweep(tmp_path/name)

@pytest.mark.parametrize('sql', ["select date '20000-01-01' as d", "select time '24:00:00' as t"])
def test_dates_that_python_has_not(tmp_path, sql):
    with pytest.raises(UserError, match='as text'): asked(tmp_path, sql=sql)

@pytest.mark.parametrize('kind', ['csv','parquet'])
def test_two_columns_of_a_name_are_not_kept(tmp_path, kind):
    from promptbench.stats.query import save
    with pytest.raises(UserError, match="different names, got 'a'"): save(asked(tmp_path, sql='select 1 as a, 2 as a'), tmp_path/f'x.{kind}')

def test_a_step_has_a_name():
    from promptbench.engine.grid import read_sweep
    with pytest.raises(UserError, match='a step of a sweep must have a name'): read_sweep(dict(steps={'': dict(page='tune')}))

@pytest.mark.skipif(os.name=='nt', reason='shells of this system close nothing')
@pytest.mark.parametrize('closed', ['>&-','>&- 2>&- <&-'])
def test_a_page_runs_with_its_streams_closed(tmp_path, closed):
    "What it opens must not become its output, and nobody says that memory ran out"
    import nbformat.v4 as v4, nbformat, subprocess, sys
    cell = v4.new_code_cell('n = 1', metadata=dict(tags=['parameters']))
    nbformat.write(v4.new_notebook(cells=[cell, v4.new_code_cell('print(n)')]), page := tmp_path/'p.ipynb')
    done = subprocess.run(['sh', '-c', f'"{sys.executable}" -m promptbench run "{page}" --root "{tmp_path}/runs" {closed}'])
    (card,) = (tmp_path/'runs').glob('*/card.json')
    assert (done.returncode, '"state": "done"' in card.read_text())==(0, True)

@pytest.mark.skipif(os.name=='nt', reason='shells of this system close nothing')
def test_no_file_becomes_the_output(tmp_path):
    import subprocess, sys
    (tmp_path/'main.py').write_text('import os, sys\nfrom promptbench.cli.main import _open_streams\n_open_streams()\n'
                                    'f = open(sys.argv[1], "w")\nf.write(str(f.fileno()>2))\nos.write(1, b"lost")')
    subprocess.run(['sh', '-c', f'"{sys.executable}" "{tmp_path}/main.py" "{tmp_path}/x" <&- >&-'])
    assert (tmp_path/'x').read_text()=='True'

@pytest.mark.skipif(os.name=='nt', reason='a signal of another kind there')
def test_ctrl_c_while_it_is_imported_is_one_line():
    import subprocess, sys
    code = ('import sys, builtins, runpy\n'
            'real = builtins.__import__\n'
            'def stopped(name, *a, **k):\n'
            '    if name=="typer": raise KeyboardInterrupt\n'
            '    return real(name, *a, **k)\n'
            'builtins.__import__ = stopped\n'
            'runpy.run_module("promptbench", run_name="__main__")')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert (done.returncode, done.stderr)==(130, 'promptbench: stopped; the same command goes on from here\n')

def test_a_gguf_file_that_describes_more_than_it_holds(tmp_path, monkeypatch):
    "The defaults of an architecture are seven thousand million weights, which nobody shall allocate for 70 bytes"
    import struct
    from promptbench.model.backbone import load_backbone
    monkeypatch.setenv('PROMPTBENCH_CACHE', str(tmp_path/'cache'))
    text = lambda s: struct.pack('<Q', len(s))+s.encode()
    (tmp_path/'b.gguf').write_bytes(b'GGUF'+struct.pack('<IQQ', 3, 0, 1)+text('general.architecture')+struct.pack('<I', 8)+text('llama'))
    with pytest.raises(UserError, match='weights, which 69 bytes cannot hold'): load_backbone(tmp_path/'b.gguf', device='cpu')

def test_an_adapter_is_named_first():
    from promptbench.prompt.peft import import_peft
    with pytest.raises(UserError, match='folder must be'): import_peft(None)
