"Stages: page and stage give one result, so do one attempt and two; names change with what matters and with nothing else"
import json, os, shutil, time
from itertools import product
from pathlib import Path
import pandas as pd, pytest
from safetensors.torch import load_file, save_file
from promptbench.base.core import UserError, write_atomic
from promptbench.base.digest import backbone_digest, folder_digest
from promptbench.base.stop import Stopped
from promptbench.data.suite import suite_digest
from promptbench.engine.pages import execute
from promptbench.model.backbone import load_backbone, random_backbone, save_backbone
from promptbench.prompt.checkpoint import load_checkpoint
from promptbench.stats.results import read_predictions, read_rows
from promptbench.train import stages
from promptbench.train.stages import Evaluate, Pretrain, Tune, settled

TEMPLATES = 'templates:\n  odd: {name: odd, jinja: "is {{x}} odd ? ||| {{ answer_choices[label] }}", answer_choices: "no ||| yes"}\n'

def dataset(folder:Path, **splits):
    "Numbers that are odd or even, some of the labels wrong, so that scores are no round numbers"
    for split,n in splits.items():
        rows = [dict(x=i, label=int(i%2!=(i%7==0))) for i in range(n)]
        write_atomic(folder/f'{split}.jsonl', ''.join(json.dumps(row)+'\n' for row in rows))
    write_atomic(folder/'templates.yaml', TEMPLATES)

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A suite and a backbone of a few lines"
    top = tmp_path_factory.mktemp('made')
    dataset(top/'suite'/'signs'/'learn', train=80)
    for name in ('first','second'): dataset(top/'suite'/'signs'/name, train=16, validation=20)
    write_atomic(top/'suite'/'suite.yaml', 'roles: {learn: train, first: eval, second: eval}\n')
    save_backbone(random_backbone(['is','odd','?','no','yes',*map(str, range(80))], seed=1), top/'bb')
    return top

@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    "A memory of digests that no other test has"
    monkeypatch.setenv('PROMPTBENCH_CACHE', str(tmp_path_factory.mktemp('cache')))

@pytest.fixture
def own(made, tmp_path):
    "A copy to edit"
    for name in ('suite','bb'): shutil.copytree(made/name, tmp_path/name)
    return tmp_path

def base(top)->dict: return dict(suite=str(top/'suite'), backbone=str(top/'bb'), seed=0, precision='fp32')
def pretraining(top, method='T+P', **more)->dict:
    return base(top)|dict(method=method, prompt='shallow', changes=dict(examples=64, batch_size=8, length=4))|more
def tuning(top, **more)->dict: return base(top)|dict(shots=4, tune=dict(steps=6, lr=.01, dropout=.1), length=4)|more

def done(stage, given:dict, folder:Path, **how)->dict:
    folder.mkdir(parents=True, exist_ok=True)
    return stage.run(given, folder, **how)

def same(a:Path, b:Path):
    "Rows and predictions are equal, but for the name of the run"
    for read in (read_rows, read_predictions):
        pd.testing.assert_frame_equal(read(a).drop(columns='run'), read(b).drop(columns='run'), check_exact=True)

def weights(run:Path)->dict:
    final = run/'checkpoints'/'final'
    return {(str(f.relative_to(final)),n): t.tolist() for f in sorted(final.rglob('*.safetensors')) for n,t in load_file(f).items()}

@pytest.fixture
def stop_when(monkeypatch, tmp_path):
    "A `tell` that asks to stop at a share of the work"
    def at(limit:float):
        def tell(share, row):
            if share>=limit: monkeypatch.setenv('PROMPTBENCH_STOP', str(tmp_path))
        return tell
    return at

def interrupted(stage, given:dict, folder:Path, tell, monkeypatch)->dict:
    "Two attempts in one folder: stopped, then gone on"
    with pytest.raises(Stopped): done(stage, given, folder, tell=tell)
    monkeypatch.delenv('PROMPTBENCH_STOP')
    shares = []
    return done(stage, given, folder, tell=lambda share, row: shares.append(share))|dict(shares=shares)

# --- one attempt and two --------------------------------------------------------------------------------------------
@pytest.mark.parametrize('method', ['T-only','P-only','T+P','FOMAML','Reptile'])
def test_pretraining_goes_on_where_it_stopped(made, tmp_path, stop_when, monkeypatch, method):
    meta = dict(tasks=2, steps=1, batch_size=4)
    given = pretraining(made, method, meta=meta, every=3)
    if method in ('FOMAML','Reptile'): given['changes'] = dict(examples=64, length=4)
    whole = done(Pretrain(), given, tmp_path/'whole')
    twice = interrupted(Pretrain(), given, tmp_path/'twice', stop_when(.5), monkeypatch)
    assert weights(tmp_path/'whole')==weights(tmp_path/'twice') and twice['updates']==whole['updates']>2
    assert [p['loss'] for p in whole['curve']]==[p['loss'] for p in twice['curve']] and twice['budget']==whole['budget']
    assert twice['shares']==sorted(twice['shares']) and twice['shares'][-1]==1
    assert [p.name for p in (tmp_path/'twice'/'checkpoints').iterdir()]==['final'], 'its steps are gone'

@pytest.mark.parametrize('at', [.4, .95], ids=['tuning','ranking'])
def test_tuning_goes_on_where_it_stopped(made, tmp_path, stop_when, monkeypatch, at):
    given = tuning(made, every=2)
    ranked = stages._rank
    if at>.9: # a stop that is asked for while the first examples are ranked
        def asked(*args, **how):
            if 'PROMPTBENCH_STOP' not in os.environ and not (tmp_path/'asked').exists():
                (tmp_path/'asked').touch()
                monkeypatch.setenv('PROMPTBENCH_STOP', str(tmp_path))
            return ranked(*args, **how)
        done(Tune(), given, tmp_path/'whole')
        monkeypatch.setattr(stages, '_rank', asked)
    else: done(Tune(), given, tmp_path/'whole')
    interrupted(Tune(), given, tmp_path/'twice', stop_when(at), monkeypatch)
    same(tmp_path/'whole', tmp_path/'twice')
    assert weights(tmp_path/'whole')==weights(tmp_path/'twice')
    assert [p.name for p in (tmp_path/'twice'/'checkpoints').iterdir()]==['final'], 'its steps are gone'

def test_one_process_or_many_parts(made, tmp_path):
    "What an earlier part of the same process left in memory changes nothing"
    given = [pretraining(made, 'T+P'), pretraining(made, 'P-only')]
    alone = []
    for i,g in enumerate(given):
        stages._warm.clear()
        done(Pretrain(), g, tmp_path/f'alone{i}')
        alone.append(weights(tmp_path/f'alone{i}'))
    stages._warm.clear()
    for i,g in enumerate([*given, *given]):
        done(Pretrain(), g, tmp_path/f'after{i}')
        assert weights(tmp_path/f'after{i}')==alone[i%2]

def test_a_chain_of_stages(made, tmp_path):
    "Pretrain, tune from it by its key, and the tuned prompts again: the same answers"
    done(Pretrain(), pretraining(made), tmp_path/'p')
    facts = done(Tune(), tuning(made, checkpoint='run:p'), tmp_path/'t')
    assert facts['method']=='T+P' and facts['budget']['updates']==6 and len(facts['curve'])==12 and facts['precision']=='fp32' and facts['device']
    again = done(Evaluate(), base(made)|dict(checkpoint='run:t'), tmp_path/'e')
    assert again['shots']==4 and again['method']=='T+P'
    same(tmp_path/'t', tmp_path/'e')
    assert not list((tmp_path/'t').rglob('model.safetensors')), 'tuned prompts only name their backbone'
    done(Tune(), tuning(made, checkpoint=str(tmp_path/'p'), kept=False), tmp_path/'u')
    same(tmp_path/'t', tmp_path/'u'); assert not (tmp_path/'u'/'checkpoints'/'final').exists()
    with pytest.raises(UserError, match='holds prompts for'): done(Evaluate(), base(made)|dict(checkpoint='run:t', role='train'), tmp_path/'x')

def test_the_device_is_handed_on(made, tmp_path, monkeypatch):
    asked = []
    def noted(load):
        def wrapper(*args, device='?', **how):
            asked.append(str(device))
            return load(*args, device=device, **how)
        return wrapper
    stages._warm.clear()
    for name in ('load_backbone','load_checkpoint'): monkeypatch.setattr(stages, name, noted(getattr(stages, name)))
    done(Pretrain(), pretraining(made), tmp_path/'p', device='cpu:0')
    done(Tune(), tuning(made, checkpoint='run:p'), tmp_path/'t', device='cpu:0')
    done(Evaluate(), base(made), tmp_path/'e', device='cpu:0')
    assert set(asked)=={'cpu:0'} and len(asked)==2
    stages._warm.clear()

# --- names ----------------------------------------------------------------------------------------------------------
def named(stage, given)->str: return json.dumps(stage.identity(given), sort_keys=True)

STAGES = dict(pretrain=(Pretrain, pretraining), tune=(Tune, tuning), evaluate=(Evaluate, lambda top, **more: base(top)|more))

@pytest.fixture(params=list(STAGES))
def stage(request):
    make,given = STAGES[request.param]
    return make(),given

def test_naming_loads_no_model(stage, made, monkeypatch):
    def no(*args, **how): raise AssertionError('a model was loaded')
    for name in ('load_backbone','load_checkpoint','new_prompt'): monkeypatch.setattr(stages, name, no)
    monkeypatch.setattr('safetensors.torch.load_file', no)
    what,given = stage
    assert named(what, given(made))==named(what, given(made))
    if isinstance(what, Pretrain): assert len({named(what, given(made, match=m)) for m in ('examples','updates','flops')})==3

def test_edits_change_names(stage, own):
    what,given = stage
    seen = [named(what, given(own))]
    def edited(): seen.append(named(what, given(own))); assert len(set(seen))==len(seen), 'an edit went unseen'
    rows = own/'suite'/'signs'/'first'/'validation.jsonl'
    rows.write_text(rows.read_text().replace('"x": 3,', '"x": 5,')); edited()
    (own/'suite'/'signs'/'learn'/'templates.yaml').write_text(TEMPLATES.replace('odd ?', 'odd')); edited()
    tensors = load_file(own/'bb'/'model.safetensors')
    first = next(iter(tensors)); tensors[first].view(-1)[0] += 1
    save_file(tensors, own/'bb'/'model.safetensors', metadata=dict(format='pt')); edited()
    config = own/'bb'/'config.json'; config.write_text(config.read_text().replace('"dropout_rate": 0', '"dropout_rate": 0.1')); edited()
    (own/'bb'/'README.md').write_text('words'); (own/'bb'/'card.json').write_text('{}')
    assert named(what, given(own))==seen[-1], 'words about a model are no part of it'

def test_settings_change_names(stage, made):
    what,given = stage
    changes = [dict(seed=1), dict(precision='bf16')]
    changes += [dict(method='P-only'), dict(changes=dict(lr=.1)), dict(prompt='deep'), dict(init='zeros'), dict(match='flops')] if isinstance(what, Pretrain) else \
        [dict(n_eval=3), dict(templates=1), dict(role='dev'), dict(method='T+P'), dict(checkpoint='run:one'), dict(checkpoint='run:two')]
    if isinstance(what, Tune): changes += [dict(shots=0), dict(shots=5), dict(tune=dict(steps=7)), dict(length=5), dict(init='zeros'), dict(prompt='deep')]
    if isinstance(what, Evaluate): changes += [dict(rule='sum')]
    names = [named(what, given(made, **change)) for change in [{}, *changes]]
    assert len(set(names))==len(names), [c for c,n in zip(changes, names[1:]) if names.count(n)>1]
    if not isinstance(what, Evaluate): assert named(what, given(made, every=7))==names[0], 'how often to save changes nothing'
    if isinstance(what, Tune): assert named(what, given(made, shots=0, tune=dict(steps=9)))==named(what, given(made, shots=0)), 'nothing is tuned'

def test_what_a_method_does_not_have_is_no_part_of_its_name(made):
    assert named(Pretrain(), pretraining(made, 'T-only'))==named(Pretrain(), pretraining(made, 'T-only', prompt='deep', init='zeros'))

def test_a_checkpoint_is_named_by_its_content(made, tmp_path):
    done(Pretrain(), pretraining(made), tmp_path/'p')
    name = lambda: named(Tune(), tuning(made, checkpoint=str(tmp_path/'p')))
    first = name()
    shutil.move(tmp_path/'p', tmp_path/'q')
    assert named(Tune(), tuning(made, checkpoint=str(tmp_path/'q')))==first, 'wherever it lies'
    done(Pretrain(), pretraining(made, seed=1), tmp_path/'p')
    assert name()!=first
    with pytest.raises(UserError, match='there is no checkpoint in'): named(Tune(), tuning(made, checkpoint=str(tmp_path/'nowhere')))

def test_wrong_settings_are_told(stage, made):
    what,given = stage
    ok = given(made)
    for bad,said in [(dict(colour=1), "has no .'colour'"), (dict(device='cpu'), "has no .'device'"), (dict(seed='0'), 'seed must be int'), (dict(seed=True), 'seed must be int'),
                     (dict(precision='auto'), 'settle it'), (dict(precision='fp16'), 'precision must be one of'), (dict(suite='nowhere'), 'a suite must be one of'),
                     (dict(backbone=str(made)), 'must hold config.json')]:
        with pytest.raises(UserError, match=said): what.identity(ok|bad)
    for name in ('suite','seed'):
        with pytest.raises(UserError, match=f"needs '{name}'"): what.identity({k:v for k,v in ok.items() if k!=name})
    assert settled(ok|dict(precision='auto'), 'cpu')['precision'] in ('fp32','bf16')

def test_names_are_cheap(made):
    "A thousand names of unchanged things: mostly looks at sizes and times"
    def timed(n, what):
        began = time.perf_counter()
        for _ in range(n): what()
        return time.perf_counter()-began
    given = tuning(made)
    for ask in (lambda: suite_digest(made/'suite'), lambda: backbone_digest('tiny'), lambda: Tune().identity(given)): assert timed(1, ask)>=0 and timed(200, ask)<2

# --- page and stage -------------------------------------------------------------------------------------------------
def test_pages_and_stages_agree(made, tmp_path):
    root,common = tmp_path/'runs',dict(suite=str(made/'suite'), backbone=str(made/'bb'), precision='fp32')
    def page(name, **given):
        run = execute(name, given, root=root)
        assert run.code==0, run.message
        return run.folder
    changes = dict(batch_size=8, length=4)
    p = page('pretrain', method='T+P', examples=64, changes=changes, **common)
    done(Pretrain(), base(made)|dict(method='T+P', prompt='shallow', changes=changes|dict(examples=64)), tmp_path/'p')
    assert weights(p)==weights(tmp_path/'p')
    how = dict(shots=4, n_eval=None, templates=None)
    t = page('tune', checkpoint=str(p), steps=3, lr=.01, changes=dict(dropout=.1), init='small', **how, **common)
    done(Tune(), base(made)|how|dict(checkpoint='run:p', init='small', length=10, tune=dict(steps=3, lr=.01, dropout=.1)), tmp_path/'t')
    same(t, tmp_path/'t')
    e = page('evaluate', rule='sum', n_eval=7, **common)
    done(Evaluate(), base(made)|dict(rule='sum', n_eval=7), tmp_path/'e')
    same(e, tmp_path/'e')
    card = json.loads((t/'card.json').read_text())
    assert card['method']=='T+P' and card['device'] and card['shots_key'] and json.loads((t/'progress.json').read_text())['step']==100

# --- asked by chat turns -----------------------------------------------------------------------------------------------
TURNS = "{% for m in messages %}<extra_id_0> {{ m.content }} <extra_id_1> {% endfor %}"

@pytest.fixture(scope='module')
def talking(made):
    "A decoder-only model with a chat template"
    b = random_backbone(['is','odd','?','no','yes',*map(str, range(80))], kind='llama', heads=2, seed=1)
    b.tokenizer.chat_template = TURNS
    save_backbone(b, made/'talks')
    return made

def test_chat_has_another_name_and_other_rows(talking, tmp_path):
    plain = base(talking)|dict(backbone=str(talking/'talks')); chat = plain|dict(chat=True)
    for stage,more in ((Evaluate, {}), (Tune, dict(shots=2)), (Pretrain, dict(method='P-only', prompt='shallow'))):
        a,b = (stage().identity(x|more) for x in (plain, chat)); assert a!=b and {k:v for k,v in b.items() if k!='chat'}==a
    rows = {n: (done(Evaluate(), x, tmp_path/n), read_rows(tmp_path/n))[1] for n,x in (('plain',plain),('chat',chat),('shown',chat|dict(context=2)))}
    name = str(talking/'talks'); assert [set(r.backbone) for r in rows.values()]==[{name},{name+' (chat)'},{name+' (chat)'}]
    scores = [read_predictions(tmp_path/n).scores_sum.map(tuple).tolist() for n in rows]; assert scores[0]!=scores[1]!=scores[2]

def test_prompts_tuned_in_chat_are_judged_in_chat(talking, tmp_path):
    given = tuning(talking, backbone=str(talking/'talks'), prompt='shallow', chat=True)
    done(Tune(), given, tmp_path/'t')
    for more in ({}, dict(chat=True)):
        out = tmp_path/f'e{len(more)}'; done(Evaluate(), base(talking)|dict(checkpoint=str(tmp_path/'t'), **more), out)
        assert set(read_rows(out).backbone)=={str(talking/'talks')+' (chat)'}
        pd.testing.assert_series_equal(read_predictions(out).scores_sum.map(tuple), read_predictions(tmp_path/'t').scores_sum.map(tuple))

def test_a_prompt_pretrained_in_chat_is_judged_in_chat(talking, tmp_path):
    done(Pretrain(), pretraining(talking, 'P-only', backbone=str(talking/'talks'), chat=True), tmp_path/'p')
    done(Evaluate(), base(talking)|dict(checkpoint=str(tmp_path/'p')), tmp_path/'e')
    assert set(read_rows(tmp_path/'e').backbone)=={str(talking/'talks')+' (chat)'}
    with pytest.raises(UserError, match='this one has none'):
        save_backbone(random_backbone(['a','b'], kind='llama'), tmp_path/'mute')
        done(Evaluate(), base(talking)|dict(backbone=str(tmp_path/'mute'), chat=True), tmp_path/'x')
