"One way to say things: order of arguments, kinds and methods by name, prompts kept and loaded, help, the README's code as it stands"
import importlib, inspect, json, pydoc, re, subprocess, sys
from dataclasses import replace
from pathlib import Path
import pytest, torch
import promptbench.all as A
from promptbench.all import *
from promptbench.base.catalogue import METHODS, called
from promptbench.base.help import notes
from promptbench.studies.table1 import Settings, announce_tables

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT/'README.md').read_text(encoding='utf8')
WORDS = 'good bad fine poor film book yes no like it Did they ?'.split()
PLACES = ('folder','path','file','place','out')

@pytest.fixture
def backbone(): return random_backbone(WORDS, seed=1)

def shots(n=4): return [Example(f'd/train/{i}', f'{WORDS[i%4]} film', ('yes','no')[i%2]) for i in range(n)]

def writers()->dict:
    "Every public function of the package that writes something to a place: module.name -> function"
    found = {}
    for file in sorted((ROOT/'promptbench').rglob('*.py')):
        for name in re.findall(r'^def ((?:write|save|export)_\w+)\(', file.read_text(encoding='utf8'), re.M):
            module = '.'.join(file.relative_to(ROOT).with_suffix('').parts); found[f'{module}.{name}'] = getattr(importlib.import_module(module), name)
    return found

LOW = ('promptbench.base.core.write_atomic','promptbench.base.own.write_out') # as Path.write_text: a place, and its bytes
FOLDERS = ('promptbench.prompt.checkpoint.save_checkpoint','promptbench.prompt.checkpoint.save_step', # parts that all are named, in a folder
           'promptbench.show.assemble.write_study','promptbench.show.report.write_report','promptbench.data.p3.save_p3')

def test_every_writer_of_the_package_takes_the_thing_first():
    found = writers(); assert len(found)>=12 and set(LOW)|set(FOLDERS)<=set(found), found
    for name,f in found.items():
        if name in LOW+FOLDERS: continue
        given = [p.name for p in inspect.signature(f).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        at = [i for i,n in enumerate(given) if n in PLACES]
        if at: assert at[0]==1 or at[0]>1 and not name.split('.')[-1].startswith('write_'), (name, given)

def test_what_is_written_comes_before_where():
    writers = [n for n in A._all_ if n.startswith(('save_','export_'))]; assert len(writers)>=4
    for name in writers:
        given = [p.name for p in inspect.signature(getattr(A, name)).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        place = next(i for i,n in enumerate(given) if n in PLACES)
        assert place>0 or len(given)==1, (name, given)   # a checkpoint, whose parts are all named, has only a place

@pytest.mark.parametrize('method', [m for m in METHODS if m!='none'])
def test_a_method_in_any_case_is_the_same_settings(method):
    kind = 'none' if method=='T-only' else 'deep'
    assert len({str(method_config(m, kind)) for m in (method, method.lower(), method.upper(), called(method))})==1
    assert Settings(methods=(method.lower(),)).methods==(method,)

def test_every_training_takes_the_name_of_a_kind(backbone):
    for row in (run := tune(backbone, 'deep', [shots()], TuneConfig(steps=1, length=2))): pass
    assert (run.bank.kind, run.bank.shots)==('deep', 4)
    suite = load_suite('microworld', n_eval=4); tasks = suite.tasks(role='train', limit=1)[:3]
    for config in (PretrainConfig(length=2, prompt='deep', examples=8, batch_size=4), MetaConfig(length=2, prompt='deep', tasks=2, batch_size=2, steps=1, updates=1)):
        for row in (run := run_method(backbone, 'deep', tasks, config)): pass
        assert (run.prompt.kind, run.prompt.length)==('deep', 2)
    with pytest.raises(UserError, match='read all rows first'): pretrain(backbone, 'deep', tasks, replace(PretrainConfig(), prompt='deep')).prompt

def test_a_finished_tuning_is_kept_also_after_three_steps(backbone, tmp_path):
    task = load_suite('microworld', n_eval=4).tasks(dataset='entail')[0]
    for row in (run := tune(backbone, 'deep', [task], TuneConfig(shots=2, steps=3, length=2), folder=tmp_path)): pass
    for back in (load_prompt(tmp_path, backbone), load_prompt(tmp_path/'prompt', backbone)):
        assert torch.equal(back.table, run.bank.table) and (back.shots, back.tasks)==(2, (task.name,))
    with pytest.raises(UserError, match='with other weights than'): load_prompt(tmp_path, random_backbone(WORDS, seed=2))
    with pytest.raises(UserError, match='made for another backbone'): load_prompt(tmp_path, random_backbone(WORDS, dim=64))
    none = tune(backbone, 'deep', [task], TuneConfig(shots=2, steps=0, length=2)); list(none); assert none.bank.shots==0
    assert save_prompt(back, tmp_path/'again', backbone=backbone) and load_prompt(tmp_path/'again').shots==2

def test_help_explains_every_argument_in_a_terminal_and_in_jupyter():
    from IPython.core.oinspect import Inspector
    for name in A._all_:
        thing = getattr(A, name)
        if not inspect.isfunction(thing): continue
        said,asked = pydoc.plain(pydoc.render_doc(thing)),Inspector(theme_name='linux').info(thing)['docstring']
        for p in inspect.signature(thing).parameters:
            assert f'{p}: {notes(thing)[p]}' in said and f'{p}: {notes(thing)[p]}' in asked, (name, p)
    assert 'Examples per task, all of them in every step' in pydoc.plain(pydoc.render_doc(TuneConfig))

def test_the_ten_lines_of_the_readme_print_a_gain(tmp_path):
    code, = re.findall(r'^```python\n(from promptbench.all.*?)^```', README, re.M|re.S)
    r = subprocess.run([sys.executable,'-c',code], cwd=tmp_path, capture_output=True, text=True, encoding='utf8'); assert r.returncode==0, r.stderr
    assert float(re.search(r'gain (-?[\d.]+) ±', r.stdout)[1])>.12, r.stdout   # five draws gave .28 to .39
    assert load_prompt(tmp_path/'runs'/'reviews').shots==16

def test_the_suite_of_the_readme_works_and_is_too_small_for_a_meta_learner(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = json.loads(re.search(r'^```json\n(.*?)^```', README, re.M|re.S)[1]); films = tmp_path/'my_tasks'/'sentiment'/'films'; films.mkdir(parents=True)
    for split in ('train','validation'): (films/f'{split}.jsonl').write_text(''.join(json.dumps(line|dict(label=i%2))+'\n' for i in range(16)))
    for name,text in re.findall(r'^```yaml\n# (my_tasks/\S+\.yaml).*?\n(.*?)^```', README, re.M|re.S): (tmp_path/name).write_text(text)
    assert [p.name for p in tmp_path.rglob('*.yaml')] and check_suite('my_tasks') is not None
    suite = load_suite('my_tasks'); task, = suite.tasks(role='eval'); assert task.chance==.5 and len(task.shots(16, 0))==16
    assert task.examples('validation', 1)[0].source==line['text']+' Did they like it?'
    (tmp_path/'my_tasks'/'suite.yaml').write_text('roles: {train: [films]}\n')
    with pytest.raises(UserError, match=r'write roles: \{films: train\}'): load_suite('my_tasks')
    (tmp_path/'my_tasks'/'suite.yaml').write_text('roles: {films: train}\n')
    with pytest.raises(UserError, match='FOMAML cannot be pretrained on my_tasks: the 1 training tasks give'): announce_tables([Settings(suite='my_tasks', methods=('fomaml',), pretrain=dict(examples=64))], tmp_path/'out')
    assert not (tmp_path/'out').exists()
