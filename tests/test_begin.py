"From one table to a suite on the command line, and what a newcomer who took the wrong step is told"
import csv, os
import pytest
from typer.testing import CliRunner
from promptbench.base.core import UserError
from promptbench.cli.main import app
from promptbench.data.suite import load_suite

def called(*args): return CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False, standalone_mode=False)
def says(*args):
    with pytest.raises(UserError) as e: called(*args)
    assert '\n' not in str(e.value)
    return str(e.value)

@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path); monkeypatch.setenv('PROMPTBENCH_QUIET', '1')
    with open('shop.csv', 'w', newline='') as f: csv.writer(f).writerows([('id','note','desk'), *[(i, f'bell {i} is {"broken" if i%3 else "lovely"}', 'repair' if i%3 else 'sale') for i in range(60)]])
    return tmp_path/'shop.csv'

def test_one_table_becomes_a_suite_that_needs_no_editing(table):
    told = called('suites','new','shop.csv').output
    assert 'shop_suite' in told and all(f'promptbench {next}' in told for next in ('suites check shop_suite','show shop_suite shop','evaluate --suite shop_suite'))
    task, = load_suite('shop_suite').tasks(role='eval'); assert (task.size('train'),task.size('validation'))==(30,30)
    rows = [r for split in ('train','validation') for r in task.data.records[split]]; assert sorted(r['id'] for r in rows)==list(range(60))
    assert task.examples('validation', 1)[0].choices==('repair','sale') and 'bell' in task.examples('validation', 1)[0].source
    checked = called('suites','check','shop_suite').output; assert '0 errors, 0 warnings' in checked
    assert called('show','shop_suite','shop').exit_code==0
    (table.parent/'1e3.csv').write_bytes(table.read_bytes()); called('suites','new','1e3.csv'); assert load_suite('1e3_suite').tasks(role='eval')[0].dataset=='1e3' # a name that YAML would read as a number

def test_who_is_drawn_depends_on_the_seed_and_every_label_gives_its_share(table):
    held = lambda *more: [tuple(r['id'] for r in load_suite(place).tasks()[0].data.records['validation']) for place in [str(more[-1])] if called('suites','new','shop.csv',*more[:-1],'--out',place)][0]
    assert held('a')==held('b')!=held('--seed',1,'c')
    few = load_suite('b').tasks()[0]; assert sum(r['desk']=='sale' for r in few.data.records['validation'])==10 # of 20
    assert len(held('--share',.25,'d'))==15

def test_a_wrong_step_is_told_in_one_line(table):
    assert says('suites','check','shop.csv').endswith('promptbench suites new shop.csv makes one of it')
    assert 'no file' in says('suites','new','missing.csv') or 'missing.csv' in says('suites','new','missing.csv')
    called('suites','new','shop.csv'); assert 'is there already' in says('suites','new','shop.csv')
    assert 'the column of the label must be one of' in says('suites','new','shop.csv','--out','x','--label','kind')
    assert '--share must be' in says('suites','new','shop.csv','--out','x','--share',2) and not (table.parent/'x').exists()
    (table.parent/'odd.csv').write_text('a text,kind\nx,p\ny,p\nz,q\nw,q\n'); assert 'rename them in the file' in says('suites','new','odd.csv')
    assert not (table.parent/'odd_suite').exists()

def test_a_suite_that_cannot_be_judged_is_no_clean_suite(table):
    "One file called train, as it came: the check warns, and evaluate says so before it loads a model"
    place = table.parent/'mine'/'letters'/'shop'; place.mkdir(parents=True); (place/'train.csv').write_bytes(table.read_bytes())
    (place/'templates.yaml').write_text('dataset: shop\ntemplates:\n  a: {name: a, answer_choices: "repair ||| sale", jinja: "{{note}} ||| {{desk}}"}\n')
    assert 'no dataset has a validation split, so that nothing can be judged; put a validation file beside train' in called('suites','check','mine').output
    assert 'it has 1 train with choices' in says('evaluate','--suite','mine','--backbone','a model that is not there')
    (table.parent/'mine'/'suite.yaml').write_text('roles: {shop: train}\n'); assert '0 warnings' in called('suites','check','mine').output

ODD = { # what is in the file -> words of the answer
    'none,label\na,x\nb,y\n': 'means something else in a template', 'answer_choices,label\na,x\nb,y\n': 'means something else in a template',
    'text,label\na, x\nb,x\nc,y\n': 'more than spaces around them', 'text,label\na,\nb,x\n': 'every row must have a label'}

@pytest.mark.parametrize('text', ODD)
def test_a_table_that_would_say_something_else(table, text):
    head,rows = text.split('\n', 1)
    (table.parent/'odd.csv').write_text(f'{head}\n'+rows*4)
    assert ODD[text] in says('suites','new','odd.csv','--label','label') and not (table.parent/'odd_suite').exists()

def test_a_number_that_is_none_is_no_label(table):
    (table.parent/'odd.jsonl').write_text('{"text": "a", "label": NaN}\n{"text": "b", "label": 1}\n'*4)
    assert 'NaN is no value of JSON' in says('suites','new','odd.jsonl','--label','label')
    (table.parent/'odd.jsonl').write_text('{"text": "a", "label": null}\n{"text": "b", "label": 1}\n'*4)
    assert 'record 1 has none (4 of 8)' in says('suites','new','odd.jsonl','--label','label')

def test_what_is_no_file_is_not_waited_for(table):
    os.mkfifo(table.parent/'pipe.csv')
    assert 'must be a file, and it is none' in says('suites','new','pipe.csv')
    assert 'it is not there' in says('suites','new','nowhere.csv')
    assert 'must be two columns' in says('suites','new','shop.csv','--text','desk','--label','desk')

def test_a_suite_is_whole_or_not_there(table, monkeypatch):
    "Whatever fails while it is written, the same call begins again; and what is there bears no mark, for it is to be edited"
    from promptbench.data import begin
    really = begin.write_templates
    def fail(*a): raise OSError(28, 'No space left on device', 'x')
    monkeypatch.setattr(begin, 'write_templates', fail)
    with pytest.raises(OSError): called('suites','new','shop.csv')
    assert [p.name for p in table.parent.iterdir()]==['shop.csv']
    monkeypatch.setattr(begin, 'write_templates', really)
    called('suites','new','shop.csv')
    assert sorted(p.name for p in (table.parent/'shop_suite').iterdir())==['mine','suite.yaml']

def test_a_plan_for_a_suite_without_training_data_says_so(tmp_path):
    "Own data is most often one set of questions: neither the table nor its plan divides by nothing"
    import subprocess, sys
    (tmp_path/'a.csv').write_text('text,label\n'+''.join(f'it was {w} {i},{l}\n' for i in range(60) for w,l in (('good','yes'),('bad','no'))))
    ask = lambda *words: subprocess.run([sys.executable, '-m', 'promptbench', *words], cwd=tmp_path, capture_output=True, text=True)
    assert ask('suites', 'new', 'a.csv').returncode==0
    for more in ((), ('--dry-run',)):
        done = ask('table1', '--suite', 'a_suite', '--quick', '--methods', 'none,T+P', '--prompts', 'shallow', *more)
        assert (done.returncode, done.stderr.count('\n'))==(2, 1) and "no datasets with the role 'train'" in done.stderr, done.stderr
