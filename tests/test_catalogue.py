"Something new is its own module and one line in a catalogue: a method, a kind of prompt and a suite, each tried in Table 1"
import ast, os, subprocess, sys
from pathlib import Path
import pandas as pd, pytest, torch, yaml
from promptbench.base import catalogue as C
from promptbench.base.core import UserError
from promptbench.model.backbone import random_backbone
from promptbench.model.batch import make_batch
from promptbench.prompt.checkpoint import load_checkpoint, save_checkpoint
from promptbench.prompt.forward import check_prompt
from promptbench.prompt.inits import new_prompt
from promptbench.train.pretrain import PretrainConfig, pretrain
from promptbench.train.tune import TuneConfig, tune

ROOT = Path(__file__).resolve().parent.parent

METHOD = '''
from dataclasses import dataclass
import torch
from promptbench.model.backbone import freeze
from promptbench.model.batch import make_batch
from promptbench.prompt.packed import target_nll
from promptbench.train.pretrain import PRESETS

@dataclass(frozen=True, kw_only=True)
class FewConfig:
    prompt:str
    method:str = 'few'
    length:int = 20
    examples:int = 48
    seed:int = 0

def config(method, prompt, *, scale='tiny', seed=0, meta=None, **changes):
    return FewConfig(prompt=prompt, seed=seed, length=PRESETS[scale]['length'])

def run(backbone, prompt, tasks, config, *, folder=None, every=500):
    freeze(backbone)
    opt,tokens = torch.optim.Adam(prompt.parameters(), lr=.01),0
    for step in range(config.examples//16):
        batch = make_batch(backbone.pairs(tasks[step%len(tasks)].examples('train', 16)))
        loss = target_nll(backbone, batch, prompt).sum()/batch.tgt_mask_BU.sum()
        opt.zero_grad()
        loss.backward()
        opt.step()
        tokens += int(batch.src_mask_BT.sum()+batch.tgt_mask_BU.sum())
        yield dict(step=step, loss=loss.item(), seconds=0., budget=dict(updates=step+1, examples=16*(step+1), tokens=tokens, flops=0.))
'''

PROMPT = '''
from promptbench.prompt.bank import DeepPrompt, ShallowPrompt

class Both(ShallowPrompt):
    "Vectors in front of the text, and keys and values in every layer, from one table"
    kind = 'both'
    @staticmethod
    def size(backbone): return ShallowPrompt.size(backbone)+DeepPrompt.size(backbone)
    def placed(self, backbone, index_B):
        rows_BPY = self.rows(index_B)
        return rows_BPY[...,:backbone.dim],rows_BPY[...,backbone.dim:]

class Halved(ShallowPrompt):
    "A shallow prompt at half its size"
    kind = 'halved'
    def placed(self, backbone, index_B): return .5*self.rows(index_B),None
'''

SUITE = '''
import random
from promptbench.data.suite import Dataset, Suite
from promptbench.data.templates import Template

def build(*, seed=0, n_eval=150):
    "Three datasets of a few words"
    def of(name, role, n):
        draw = random.Random(f'{name} {seed}')
        records = [dict(word=draw.choice(['red','blue','old']), label=draw.randrange(2)) for _ in range(n)]
        words = Template('said', "is the {{word}} one here ? ||| {{ answer_choices[label] }}", 'no ||| yes')
        return Dataset(name, 'films', role, dict(train=records[:64], validation=records[64:]), [words])
    return Suite('films', [of(f'{role} films', role, 64+n_eval) for role in ('train','dev','eval')])
'''

CATALOGUE = dict(
    methods=dict(Few=dict(what='a prompt trained for three steps (Few)', note='the prompt, for three steps', trains=['prompt'],
                          called='few', run='toy_method:run', config='toy_method:config')),
    prompts=dict(both=dict(what='vectors and keys', label='both', make='toy_prompt:Both'),
                 halved=dict(what='half as large', label='halved', make='toy_prompt:Halved', words='promptbench.prompt.inits:shallow_from_ids')),
    suites=dict(films=dict(what='films', make='toy_suite:build', draws=True)))

@pytest.fixture(scope='module')
def mine(tmp_path_factory):
    "A folder with three modules and one file of entries, and the environment that knows them"
    folder = tmp_path_factory.mktemp('mine')
    for name,text in dict(method=METHOD, prompt=PROMPT, suite=SUITE).items(): (folder/f'toy_{name}.py').write_text(text)
    (folder/'mine.yaml').write_text(yaml.safe_dump(CATALOGUE))
    path = os.pathsep.join([str(folder), str(ROOT)])
    return folder,os.environ|dict(PROMPTBENCH_CATALOGUE=str(folder/'mine.yaml'), PYTHONPATH=path, COLUMNS='200')

def promptbench(*args, env):
    return subprocess.run([sys.executable,'-m','promptbench.cli.main',*map(str, args)], env=env, capture_output=True, text=True, cwd=ROOT)

@pytest.fixture
def added(mine, monkeypatch):
    "The same entries in this process"
    monkeypatch.syspath_prepend(str(mine[0]))
    entries = [(sort,name,values) for sort,named in CATALOGUE.items() for name,values in named.items()]
    for sort,name,values in entries: C.add(sort, name, **{k:tuple(v) if isinstance(v, list) else v for k,v in values.items()})
    yield
    for sort,name,_ in entries: C.remove(sort, name)

# --- three new things in Table 1 -------------------------------------------------------------------------------------
def test_help_names_them(mine):
    text = promptbench('table1', '--help', env=mine[1]).stdout
    for name in ('Few','both','films'): assert name in text, name
    text = ' '.join(text.translate({ord(c): ' ' for c in '│┃|'}).split()) # as one line, without the frame
    usual = ','.join(name for name,method in C.METHODS.items() if not method.meta)
    assert f'{usual},Few' in text, 'what a table has when nothing else is asked for'
    assert ', '.join([*C.METHODS,'Few']) in text

def test_they_make_a_table_and_its_report(mine, tmp_path):
    r = promptbench('table1', '--quick', '--suite', 'films', '--methods', 'none,Few', '--prompts', 'both,halved', '--shots', '0,4', '--out', tmp_path, env=mine[1])
    assert r.returncode==0, r.stderr[-2000:]
    rows = pd.read_parquet(tmp_path/'rows.parquet')
    assert set(rows.suite)=={'films'} and set(rows.dataset)=={'eval films'}
    cells = set(rows[['method','prompt','shots']].itertuples(index=False, name=None))
    assert cells=={('none','none',0)}|{('Few',p,0) for p in ('both','halved')}|{(m,p,4) for m in ('none','Few') for p in ('both','halved')}
    report = (tmp_path/'report.html').read_text()
    assert 'a prompt trained for three steps (Few)' in report and 'the prompt, for three steps' in report and 'both prompt' in report
    assert 'Toy scale' not in report, 'what is said of the microworld is not said of films'

def test_a_mistake_in_the_file_is_one_line(mine, tmp_path):
    (tmp_path/'wrong.yaml').write_text('methods: {Few: {wat: this}}')
    r = promptbench('table1', '--quick', '--out', tmp_path/'out', env=mine[1]|dict(PROMPTBENCH_CATALOGUE=str(tmp_path/'wrong.yaml')))
    assert r.returncode==2 and "wrong.yaml, methods → Few has no field 'wat'" in r.stderr and 'Traceback' not in r.stderr

# --- a new kind of prompt in every stage -----------------------------------------------------------------------------
@pytest.fixture(scope='module')
def toy(): return random_backbone('the cat sat on a mat and the dog ran'.split(), dim=16, layers=(2,2))

@pytest.mark.parametrize('kind', ['both','halved'])
@pytest.mark.parametrize('causal', [False,True])
def test_a_new_kind_keeps_the_contract(added, kind, causal):
    b = random_backbone('the cat sat on a mat'.split(), dim=16, kind='llama' if causal else 't5')
    for n in (1,3): check_prompt(lambda: new_prompt(kind, b, length=3, n=n, init='normal'), b)

def test_a_new_kind_is_saved_and_comes_back(added, toy, tmp_path):
    p = new_prompt('both', toy, length=3, seed=1); save_checkpoint(tmp_path/'c', prompt=p)
    _,q,_ = load_checkpoint(tmp_path/'c'); assert q.kind=='both' and torch.equal(p.table, q.table)

def test_a_new_kind_is_tuned_as_the_slow_way_says(added, toy):
    from promptbench.train.tune import BankRun
    examples = [([13,14,15,1],[16,1]), ([14,13,1],[17,18,1])]
    bank = new_prompt('both', toy, length=2, n=1, seed=3); slow = bank.select([0])
    run = BankRun(toy, bank, [examples], TuneConfig(shots=2, steps=1, lr=.1, length=2, dropout=0.), False)
    from promptbench.prompt.forward import forward, sequence_nll
    batch = make_batch(examples); nll = sequence_nll(forward(toy, batch, slow), batch.tgt_BU, batch.tgt_mask_BU)
    (nll.sum()/batch.tgt_mask_BU.sum()).backward()
    loss,_ = run.step(0); torch.testing.assert_close(loss[0], (nll.sum()/batch.tgt_mask_BU.sum()).detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(run.bank.table.grad, slow.table.grad, atol=1e-5, rtol=1e-4)

@pytest.mark.parametrize('kind', ['both','halved'])
def test_a_new_kind_is_pretrained(added, mine, toy, kind):
    import toy_suite
    tasks = toy_suite.build(n_eval=8).tasks('train'); b = toy.clone(); p = new_prompt(kind, b, length=3, init='normal')
    rows = list(pretrain(b, p, tasks, PretrainConfig(method='T+P', prompt=kind, length=3, examples=32, batch_size=16, packed=True, dropout=0.)))
    assert len(rows)==2 and all(r['loss']==r['loss'] for r in rows)

def test_a_kind_without_words_says_so(added, toy):
    with pytest.raises(UserError, match='a both prompt cannot start from words'): new_prompt('both', toy, init='vocab')
    assert new_prompt('halved', toy, length=2, init='vocab').table.shape==(1,2,16)

# --- the catalogues themselves ---------------------------------------------------------------------------------------
@pytest.mark.parametrize('sort', list(C.CATALOGUES))
def test_everything_an_entry_names_is_there(sort):
    named = [v for e in C.CATALOGUES[sort].values() for v in vars(e).values() if isinstance(v, str) and v.startswith('promptbench.')]
    for where in named: assert callable(C.load(where)), where
    assert named or sort=='resources'

def test_an_unknown_name_lists_the_known():
    for catalogue in C.CATALOGUES.values():
        with pytest.raises(UserError, match=f'{catalogue.what} must be one of'): catalogue['no such']

def test_fields_are_checked():
    with pytest.raises(UserError, match="suites → x has no field 'colour'"): C.add('suites', 'x', what='w', make='m:f', colour='red')
    with pytest.raises(UserError, match="methods → x must have the field 'run'"): C.add('methods', 'x', what='w')
    with pytest.raises(UserError, match='there is a prompt of that name already'): C.add('prompts', 'deep', what='w', label='w', make='m:f')
    with pytest.raises(UserError, match="named as 'module:function'"): C.load('module.function')

# --- nobody else keeps a list ----------------------------------------------------------------------------------------
LISTS = dict(methods=set(C.METHODS)-{'none'}, prompts=set(C.columns()), suites=set(C.SUITES))

def names(node)->set:
    "Strings that stand in a literal, those in it included"
    if isinstance(node, ast.Constant): return {node.value} if isinstance(node.value, str) else set()
    if isinstance(node, ast.Dict): return set().union(*(names(n) for n in [*node.keys, *node.values] if n is not None))
    if isinstance(node, (ast.List,ast.Tuple,ast.Set)): return set().union(*map(names, node.elts))
    return set()

def lists(text:str)->list:
    "Literals, comparisons and dict calls that hold two names of one catalogue"
    found = []
    for n in ast.walk(ast.parse(text)):
        got = names(n)
        if isinstance(n, ast.Compare): got = names(n.left).union(*map(names, n.comparators))
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id=='dict': got = {k.arg for k in n.keywords}
        found += [(n.lineno, sorted(got&known)) for known in LISTS.values() if len(got&known)>1]
    return found

@pytest.mark.parametrize('path', [p for p in sorted((ROOT/'promptbench').glob('*/*.py')) if p.name!='catalogue.py'], ids=lambda p: f'{p.parent.name}.{p.stem}')
def test_no_other_page_lists_names(path): assert lists(path.read_text(encoding='utf8'))==[]

def test_a_list_would_be_found():
    for text in ("x = ('T-only','T+P')", "x = {'T-only':1, 'FOMAML':2}", "if p in ('shallow','deep'): f()", 'x = dict(shallow=1, deep=2)', "s = ['p3', ('hub',1)]", "x = {'a':'T+P', 'b':'T-only'}"):
        assert lists(text), text
    assert not lists("x = method=='T+P'; y = ('T+P','shallow')")
