"BIG-bench: small files of its format as archive and as checkout, roles and splits, damaged sources; the real archive where it was fetched"
import gzip, io, json, os, signal, subprocess, sys, tarfile, time
from collections import Counter
from pathlib import Path
import pytest
from typer.testing import CliRunner
from promptbench.base.core import UserError
from promptbench.data import bigbench
from promptbench.data.bigbench import bigbench_suite, catalogue_of, cluster_of, counts, family_roles, index_of
from promptbench.data.fetch import is_there
from promptbench.data.suite import describe, guesses, load_suite, suite_digest

USER = {k: os.environ.get(k) for k in ('PROMPTBENCH_CACHE',)}

@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    monkeypatch.setenv('PROMPTBENCH_QUIET', '1')
    monkeypatch.setenv('PROMPTBENCH_CACHE', str(tmp_path/'cache'))

def says(e, *parts): assert all(p in str(e.value) for p in parts), str(e.value)

def task(examples, keywords=('mathematics',), **more):
    return dict(canary='none', name='t', description='d', keywords=list(keywords), metrics=['m'], preferred_score='m')|more|(
        {} if examples is None else dict(examples=examples))
def ranked(n, at=0, **scores): return [dict(input=f'question {i+at}', target_scores=scores or {'yes': i%2, 'no': 1-i%2}) for i in range(n)]
def free(n): return [dict(input=f'{i} + 1', target=str(i+1)) for i in range(n)]

TASKS = {
    'alone': task(ranked(80), ['zero-shot','common sense']), 'parent': task(None), 'parent/one': task(ranked(70)), 'parent/few': task(ranked(40)),
    'parent/free': task(free(50)), 'free': task(free(64)), 'foreign': task(ranked(90), ['non-English']), 'tiny': task(ranked(8)),
    'long': task([dict(input='word '*200+str(i), target='x') for i in range(40)])}

def checkout(place:Path, tasks=TASKS)->Path:
    for name,t in tasks.items():
        file = place/'bigbench'/'benchmark_tasks'/name/'task.json'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(t if isinstance(t, bytes) else json.dumps(t).encode())
    return place

def archive(path:Path, tasks=TASKS)->Path:
    with tarfile.open(path, 'w:gz') as tar:
        for name,t in {'../setup': b'raise SystemExit("code of the package was run")', **tasks}.items():
            raw = t if isinstance(t, bytes) else json.dumps(t).encode()
            info = tarfile.TarInfo('bigbench-9/setup.py' if name=='../setup' else f'bigbench-9/bigbench/benchmark_tasks/{name}/task.json')
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return path

def twice(path:Path)->Path:
    "An archive with the same member two times"
    with tarfile.open(path, 'w:gz') as tar:
        for _ in range(2):
            raw = json.dumps(TASKS['alone']).encode()
            info = tarfile.TarInfo('benchmark_tasks/alone/task.json')
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return path

# --- what is read ----------------------------------------------------------------------------------------------------
def test_an_archive_and_a_checkout_give_the_same_suite(tmp_path):
    a,b = load_suite(f'bigbench:{archive(tmp_path/"a.tar.gz")}'),load_suite(f'bigbench:{checkout(tmp_path/"b")}')
    assert a.fingerprint()==b.fingerprint() and describe(a)==describe(b) and a.groups==b.groups
    for s,t in zip(a.tasks(), b.tasks()): assert s.examples('validation')==t.examples('validation') and s.examples('train')==t.examples('train')
    assert counts(tmp_path/'a.tar.gz')==counts(tmp_path/'b')==dict(files=9, families=6, tasks=8, examples=442, ranked=5, free=3)
    assert load_suite(f'bigbench:{tmp_path/"b"/"bigbench"/"benchmark_tasks"}').fingerprint()==a.fingerprint()
    assert not any(m=='bigbench' or m.startswith('bigbench.') for m in sys.modules), 'nothing of the package itself is imported'

def test_what_is_chosen(tmp_path):
    place = checkout(tmp_path/'b')
    def names(**how): return {d.name for d in bigbench_suite(place, **how).datasets}
    assert names()=={'alone','parent.one','parent.few','parent.free','free'}
    assert names(language=None)-names()=={'foreign'} and names(least=2)-names()=={'tiny'} and names(words=None)-names()=={'long'}
    assert len(names(per_family=1))==3 and names(per_family=1)<names(per_family=2)<names(per_family=3)==names()
    assert {bigbench_suite(place, per_family=1, seed=i).groups.__len__() for i in range(5)}=={3}
    assert len({tuple(sorted(names(per_family=1, seed=i))) for i in range(20)})>1

def wording(tmp_path, t, i=0):
    s = bigbench_suite(checkout(tmp_path/'w', {'t': t}), least=2, words=None)
    return s,sorted(s.tasks()[0].examples('validation')+s.tasks()[0].examples('train'), key=lambda e: int(e.id.split('/')[-1]))

def test_the_wording_is_what_the_file_says(tmp_path):
    _,plain = wording(tmp_path, task(ranked(4)))
    assert plain[0].source=='Q: question 0\n  choice: no\n  choice: yes\nA:' and plain[0].target=='no' and plain[0].choices==('no','yes')
    how = dict(task_prefix='Decide.\n', example_input_prefix='> ', example_output_prefix=' =>', choice_prefix='\n* ')
    assert wording(tmp_path, task(ranked(4), **how))[1][1].source=='Decide.\n> question 1\n* no\n* yes =>'
    for no in (False, 'false'): assert wording(tmp_path, task(ranked(4), append_choices_to_input=no))[1][0].source=='Q: question 0\nA:'
    s,_ = wording(tmp_path, task(free(4), stop_string='\n', output_regex='[0-9]+', few_shot_example_separator='\n\n'))
    facts = s.datasets[0].facts
    assert (facts['stop_string'], facts['output_regex'], facts['few_shot_example_separator'], facts['family'])==('\n','[0-9]+','\n\n','t')

def test_several_right_answers_and_parts_of_one(tmp_path):
    s,found = wording(tmp_path, task([dict(input='a', target_scores={'x': 1, 'y': 1, 'z': 0}), dict(input='b', target_scores={'x': .2, 'y': .7, 'w': .1}),
        dict(input='c', target_scores={'x': 0, 'y': 0}), dict(input='d', target_scores={'q': 1, 'x': 0}), dict(input='e', target_scores={' x ': 0, 'x': 1, '': 1, 'y': 0})]))
    assert [e.source[3] for e in found]==['a','b','d','e'], 'where no choice is better than another there is nothing to tell'
    a,b,d,e = found
    assert {a.choices[i] for i in a.right}=={'x','y'} and a.target==a.choices[a.gold] and set(a.scores)=={0.,1.}
    assert {b.choices[i] for i in b.right}=={'y'} and sorted(b.scores)==[.1,.2,.7] and d.scores is None and d.right=={d.gold}
    assert sorted(e.choices)==['x','y'] and e.target=='x'
    free = wording(tmp_path/'2', task([dict(input='a', target=['one ','1','one']), dict(input='b', target='two')]))[1]
    assert (free[0].target, free[0].accepted, free[1].accepted, free[0].choices)==('one', ('one','1'), (), None)

def test_choices_that_differ_are_mixed_alike_everywhere(tmp_path):
    rows = [dict(input=f'q{i}', target_scores={f'right {i}': 1, f'wrong {i}': 0, f'also {i}': 0}) for i in range(90)]
    _,found = wording(tmp_path, task(rows))
    gold = Counter(e.gold for e in found)
    assert set(gold)=={0,1,2} and max(gold.values())<50, 'the file lists the right one first'
    assert [e.gold for e in found][:12]==[2,1,2,2,2,1,2,1,2,0,1,0]

def test_a_right_pick_is_right_in_the_tables(tmp_path):
    from promptbench.measure.evaluate import evaluate
    from promptbench.model.backbone import random_backbone
    s = bigbench_suite(checkout(tmp_path/'e', {'t': task(ranked(80, a=1, b=1, c=0)), 'u': task(ranked(80))}), least=2)
    tasks = s.tasks()
    bb = random_backbone(words='Q: A: choice: a b c yes no question'.split(), dim=32)
    rows,predictions = evaluate(bb, tasks, suite=s)
    assert rows.chance.round(6).tolist()==[.666667,.5] and rows.majority[0]==1.
    mine = predictions[predictions.dataset=='t']
    assert (mine.correct==mine.pred.isin([0,1])).all() and rows.value[0]==mine.correct.mean()
    assert set(guesses(tasks[0]))=={2/3} and tasks[0].chance==pytest.approx(2/3)

def test_a_task_that_asks_nothing_is_held(tmp_path):
    bare = task([dict(input='', target_scores={f'this {i}': 1, f'that {i}': 0}) for i in range(80)], example_input_prefix='', example_output_prefix='', append_choices_to_input=False)
    mute = {f'mute{i}': bare for i in range(8)}
    s = bigbench_suite(checkout(tmp_path/'c', mute|{'spoken': bare|dict(task_prefix='Choose.')}))
    assert {d.name: d.role for d in s.datasets if d.role=='held'}.keys()==mute.keys() and len(s.task('spoken/own').examples('train'))==40

# --- roles and splits ------------------------------------------------------------------------------------------------
def many(n=60): return {f'family{i}/{kind}': task(examples) for i in range(n) for kind,examples in (('a',ranked(64)),('b',ranked(64, 100)),('few',ranked(40)),('free',free(40)))}

def test_a_family_is_on_one_side(tmp_path):
    place = checkout(tmp_path/'m', many()|{f'talk{i}': task(free(40)) for i in range(5)})
    for seed in (0,1):
        s = bigbench_suite(place, seed=seed)
        role = {}
        for d in s.datasets: role.setdefault(s.groups[d.name], set()).add(d.role)
        assert {frozenset(r) for r in role.values()}=={frozenset({'train'}), frozenset({'eval','held'}), frozenset({'dev','held'})}
        n = Counter('eval' if 'eval' in r else 'dev' if 'dev' in r else 'train' for r in role.values())
        assert 12<=n['eval']<=28 and 1<=n['dev']<=12 and all(role[f'talk{i}']=={'train'} for i in range(5))
        assert all(d.templates[0].answer_choices for d in s.datasets if d.role in ('eval','dev'))
        some = {d.name: d.role for d in bigbench_suite(place, seed=seed, per_family=2, least=50).datasets}
        assert some=={d.name: d.role for d in s.datasets if d.name in some}, 'another selection moves nobody'
    assert {d.role for d in bigbench_suite(place, free='held').datasets if not d.templates[0].answer_choices}=={'held'}

def test_roles_are_the_same_on_any_machine():
    tasks = [dict(family=f'family{i}', ranked=True) for i in range(12)]
    assert [family_roles(tasks)[t['family']] for t in tasks]==['train','eval','eval','train','dev','eval','eval','train','train','train','train','eval']

def test_splits(tmp_path):
    copies = task(ranked(50)+ranked(50)+[dict(input='question 1', target_scores={'yes': 1, 'no': 0, 'perhaps': 0})])
    place = checkout(tmp_path/'s', {'copies': copies, 'many': task(free(3000))})
    s = bigbench_suite(place)
    def ids(task, split): return [e.id.split('/')[-1] for e in task.examples(split)]
    once,many = s.tasks()
    assert (once.size('train'), once.size('validation'), many.size('train'), many.size('validation'))==(26,25,2000,1000)
    assert not {e.source for e in once.examples('train')}&{e.source for e in once.examples('validation')}
    assert not set(ids(many,'train'))&set(ids(many,'validation')) and len(set(ids(many,'train')))==2000
    less = bigbench_suite(place, n_eval=7, cap=5).tasks()[1]
    assert ids(less,'validation')==ids(many,'validation')[:7] and ids(less,'train')==ids(many,'train')[:5]
    assert ids(many,'validation')[:6]==['1013','1394','1555','1957','2876','534'], 'as plain integers of Python give it, too'
    assert ids(bigbench_suite(place, seed=1).tasks()[1],'validation')[:6]!=ids(many,'validation')[:6]
    rows = many.data.records['train']
    assert rows[-1]==rows[1999] and rows[:2]==[rows[0],rows[1]] and len(list(rows))==2000
    with pytest.raises(IndexError): rows[2000]

def test_names_of_results_follow_the_contents(tmp_path):
    place = archive(tmp_path/'a.tar.gz')
    first = suite_digest(f'bigbench:{place}')
    assert suite_digest(f'bigbench:{place}')==first
    archive(place, {'alone': task(ranked(81))})
    assert suite_digest(f'bigbench:{place}')!=first and [t['name'] for t in catalogue_of(place)]==['alone'], 'another version, another index'

def test_clusters(): assert [cluster_of(k) for k in ([], ['json','Physics'], ['zero-shot','theory of mind','physics'])]==['other','physics','theory_of_mind']

# --- what is broken --------------------------------------------------------------------------------------------------
def nothing_left(tmp_path): return [p.name for p in (tmp_path/'cache'/'bigbench').glob('*') if p.name!='.lock']==[]

def test_a_damaged_archive(tmp_path):
    whole = archive(tmp_path/'a.tar.gz').read_bytes()
    flipped = bytearray(whole)
    for at in range(200, len(whole)-200, 97): flipped[at] ^= 255
    crc = whole[:-8]+bytes(4)+whole[-4:]
    for i,data in enumerate((b'', b'no archive', whole[:200], whole[:-20], bytes(flipped), crc, gzip.compress(b'no tar'*999))):
        place = tmp_path/f'{i}.tar.gz'
        place.write_bytes(data)
        with pytest.raises(UserError) as e: index_of(place)
        says(e, f'{i}.tar.gz must be a whole .tar.gz archive', 'fetch it again')
        assert nothing_left(tmp_path)

BROKEN = {
    b'{"name": "x", "exam': 'must be JSON as of BIG-bench', b'\xff\xfe{': 'must be JSON as of BIG-bench', b'[1]': 'must be a JSON object', b'['*200_000: 'nested too deeply',
    b'{"examples": {"a": 1}}': 'must have a list of examples', b'{"examples": [{"input": 1}]}': 'example 0 of task t must have an input that is text',
    b'{"examples": [{"input": "a"}]}': 'a target or target_scores', b'{"examples": [{"input": "a", "target_scores": {"b": "1"}}]}': 'a number to every choice',
    b'{"examples": [{"input": "a", "target_scores": {"b": NaN, "c": 1}}]}': 'a number to every choice', b'{"examples": [{"input": "a", "target_scores": {"b": 1e999}}]}': 'a number to every choice',
    b'{"examples": [{"input": "a\\ud800", "target": "b"}]}': 'can be written as UTF-8', b'{"keywords": "a", "examples": []}': 'must have a keywords that is list',
    b'{"task_prefix": [], "examples": []}': 'must have a task_prefix that is str'}

@pytest.mark.parametrize('raw', BROKEN)
def test_a_broken_file_is_named(tmp_path, raw):
    for source in (archive(tmp_path/'a.tar.gz', {'fine': TASKS['alone'], 't': raw}), checkout(tmp_path/'c', {'fine': TASKS['alone'], 't': raw})):
        with pytest.raises(UserError) as e: index_of(source)
        says(e, BROKEN[raw], 't')
        assert '\n' not in str(e.value) and len(str(e.value))<400 and nothing_left(tmp_path)

def test_a_choice_that_comes_twice_is_one(tmp_path):
    raw = json.dumps(task(ranked(3))).replace('"yes": 1, "no": 0', '"yes": 1, "no": 0, "yes": 0').encode()
    assert wording(tmp_path, raw)[1][1].target=='yes'

def test_what_is_too_large(tmp_path, monkeypatch):
    line = task([dict(input='x'*11_000_000, target='b')])
    with pytest.raises(UserError) as e: index_of(archive(tmp_path/'a.tar.gz', {'t': line}))
    says(e, 'an input of at most 10,000,000 characters')
    many = archive(tmp_path/'b.tar.gz', {'t': task([dict(input=f'{i} '+'x'*40, target='b') for i in range(200_000)])}) # 20 MB in one line
    began = time.time()
    assert counts(many)['examples']==200_000 and time.time()-began<60
    monkeypatch.setenv('PROMPTBENCH_MAX_FILE', '1e6')
    for source in (archive(tmp_path/'c.tar.gz', {'t': task(free(9000))}), checkout(tmp_path/'c', {'t': task(free(9000))})):
        with pytest.raises(UserError) as e: index_of(source)
        says(e, 't/task.json is too large', 'PROMPTBENCH_MAX_FILE')
    with pytest.raises(UserError) as e: index_of(archive(tmp_path/'d.tar.gz', {f't{i}': task(free(2500)) for i in range(90)}))
    says(e, 'must hold at most 8,000,000 bytes unpacked')

def test_other_places(tmp_path):
    (tmp_path/'empty'/'benchmark_tasks').mkdir(parents=True)
    for source,said in ((tmp_path/'none', 'must be a checkout of google/BIG-bench'), (tmp_path/'empty', 'holds none'), (archive(tmp_path/'a.tar.gz', {'p': task(None)}), 'holds none with examples'),
                        (archive(tmp_path/'b.tar.gz', {}), 'holds none with examples'), (twice(tmp_path/'c.tar.gz'), 'alone/task.json comes twice')):
        with pytest.raises(UserError) as e: load_suite(f'bigbench:{source}')
        says(e, said)
    with pytest.raises(UserError) as e: load_suite('bigbench')
    says(e, 'promptbench get bigbench')
    with pytest.raises(UserError) as e: load_suite('bigbench', limit=3)
    says(e, 'it takes the options', 'n_eval', 'per_family')

KILLED = '''
import sys, time
from promptbench.data import bigbench
real = bigbench._write
def slow(table, path):
    real(table, path); print('one', flush=True); time.sleep(60)
bigbench._write = slow
bigbench.index_of(sys.argv[1])
'''

@pytest.mark.skipif(os.name=='nt', reason='signals')
def test_a_killed_index_is_none(tmp_path):
    place = archive(tmp_path/'a.tar.gz')
    p = subprocess.Popen([sys.executable, '-c', KILLED, str(place)], stdout=subprocess.PIPE, text=True)
    assert p.stdout.readline()=='one\n'
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert [f.name[:8] for f in (tmp_path/'cache'/'bigbench').iterdir() if f.is_dir()]==['.making-']
    assert len(bigbench_suite(place).tasks())==5
    assert [f.name[:8] for f in (tmp_path/'cache'/'bigbench').iterdir() if f.is_dir()]==[index_of(place).name[:8]], 'what the kill left is gone'

def test_a_damaged_index_says_so(tmp_path):
    place = archive(tmp_path/'a.tar.gz')
    folder = index_of(place)
    s = bigbench_suite(place)
    for f in folder.glob('*.arrow'): f.write_bytes(f.read_bytes()[:100])
    with pytest.raises(UserError) as e: s.tasks()[0].examples('train')
    says(e, 'is damaged', 'remove that folder')
    (folder/'tasks.json').write_text('{"tas')
    bigbench._read_index.cache_clear()
    with pytest.raises(UserError) as e: bigbench_suite(place)
    says(e, 'is damaged', 'remove that folder')

def test_no_room(tmp_path, monkeypatch):
    def full(table, path): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(bigbench, '_write', full)
    for source in (archive(tmp_path/'a.tar.gz'), checkout(tmp_path/'c')):
        with pytest.raises(UserError) as e: index_of(source)
        says(e, 'cannot be written', 'No space left', 'PROMPTBENCH_CACHE')
        assert nothing_left(tmp_path)

# --- as commands and cards -------------------------------------------------------------------------------------------
def test_commands(tmp_path):
    from promptbench.cli.suites import app
    name = f'bigbench:{checkout(tmp_path/"c", {"alone": TASKS["alone"], "free": task([dict(input=f"say {i}", target=f"say {i}") for i in range(40)])})}'
    r = CliRunner().invoke(app, ['suites','check',name,'--notes'])
    assert r.exit_code==0 and '0 errors' in r.output and "source holds the whole target in 100%" in r.output, r.output
    r = CliRunner().invoke(app, ['show',name])
    assert r.exit_code==0 and 'common_sense' in r.output and 'alone' in r.output
    r = CliRunner().invoke(app, ['show',name,'alone'])
    assert r.exit_code==0 and '  choice: yes' in r.output and 'guessing 50.0%' in r.output
    r = CliRunner().invoke(app, ['suites','check',name,'--templates','all'])
    assert isinstance(r.exception, UserError) and '--templates chooses' in str(r.exception)

def test_figures(tmp_path):
    import pandas as pd
    from promptbench.data.checks import lengths, token_counter, truncation
    from promptbench.show.suite_plots import plot_baselines, plot_lengths, plot_sizes, plot_truncation
    s = bigbench_suite(checkout(tmp_path/'c'))
    d,l = pd.DataFrame(describe(s)),lengths(s, token_counter())
    assert all(f.data for f in (plot_sizes(d), plot_baselines(d), plot_lengths(l), plot_truncation(truncation(l))))

def test_what_the_makers_ask_travels(tmp_path):
    from promptbench.base.catalogue import suite_source
    from promptbench.prompt.checkpoint import read_card, save_checkpoint
    from promptbench.model.backbone import random_backbone
    s = bigbench_suite(checkout(tmp_path/'c'))
    assert 'canary' in s.notes[0] and '5 of 8 tasks, of 3 families' in s.notes[1] and suite_source('bigbench').caveat
    save_checkpoint(tmp_path/'ck', backbone=random_backbone(words=['a']), card=dict(suite=f'bigbench:{tmp_path/"c"}'))
    assert read_card(tmp_path/'ck')['terms']==s.notes[0]
    save_checkpoint(tmp_path/'mine', backbone=random_backbone(words=['a']), card=dict(suite='microworld'))
    assert 'terms' not in read_card(tmp_path/'mine')

# --- the real archive, where somebody fetched it ---------------------------------------------------------------------
@pytest.fixture
def real(monkeypatch):
    for k,v in USER.items(): monkeypatch.delenv(k) if v is None else monkeypatch.setenv(k, v)
    if not is_there('bigbench'): pytest.skip('BIG-bench is not in the cache: promptbench get bigbench (358 MB)')

@pytest.mark.slow
def test_the_real_archive(real):
    assert counts()==dict(files=1041, families=167, tasks=1001, examples=2_637_598, ranked=320, free=681)
    began = time.time()
    s = load_suite('bigbench')
    took = time.time()-began
    families = {r: {s.groups[d.name] for d in s.datasets if d.role==r} for r in ('train','eval','dev')}
    assert len(s.datasets)==786 and len(set(s.groups.values()))==126 and not families['train']&(families['eval']|families['dev']) and not families['eval']&families['dev']
    judges = [t for t in catalogue_of() if t['ranked'] and t['examples']>=64 and t['name'].replace('/','.') in s.groups]
    assert len(judges)==144 and len({t['family'] for t in judges})==75 and took<10, took # promised: 3 s
    sizes = [len(t.examples('validation', 20)) for t in s.tasks('eval')]
    assert set(sizes)=={20} and len(sizes)>50
