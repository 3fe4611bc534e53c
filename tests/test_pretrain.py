"""The multi-task cells: golden losses, what is trained and what is not, mixtures, budgets, going on after a kill.

`python tests/test_pretrain.py` writes the golden losses anew. Do so only when a change of numbers is meant, and say why in the commit that changes them."""
import collections, itertools, os, signal, subprocess, sys, pytest, torch
from dataclasses import replace
from pathlib import Path
from promptbench.base.core import UserError
from promptbench.model.backbone import random_backbone, weight_hashes
from promptbench.model.batch import make_batch
from promptbench.model.tokens import encode_examples
from promptbench.train.fit import token_nll
from promptbench.prompt.inits import new_prompt
from promptbench.base.catalogue import trains
from promptbench.train.pretrain import PRESETS, PretrainConfig, flops, mixture, preset, pretrain
from promptbench.data.suite import Dataset, Suite
from promptbench.data.templates import Template

GOLDEN = Path(__file__).parent/'golden'
CELLS = [('T-only','none'), ('P-only','shallow'), ('P-only','deep'), ('T+P','shallow'), ('T+P','deep')]
WORDS = 'ann ben cat dan red blue green likes what color does it is the of say two one three'.split()

def suite():
    "Three small datasets in memory: one long, one short, one whose second template skips half of the rows"
    def data(name, n, templates): return Dataset(name, 'toy', 'train', dict(train=[dict(who=WORDS[i%4], color=WORDS[4+(i*7+i//4)%3], odd=i%2) for i in range(n)]), templates)
    ask = Template('ask', '{{who}} likes {{color}} what color does {{who}} likes ||| {{color}}')
    say = Template('say', 'say the color of {{who}} {{color}} ||| it is {{color}}')
    half = Template('half', '{% if odd %}{{who}} {{color}} ||| one {{color}}{% else %} ||| {% endif %}')
    return Suite('toy', [data('long', 60, [ask,say]), data('short', 20, [say]), data('skips', 30, [ask,half])])

def cell(method, prompt, **changes):
    "Backbone, prompt and settings of a small run, all from fixed seeds"
    config = PretrainConfig(**dict(method=method, prompt=prompt, length=3, examples=80, batch_size=8, lr=3e-3, prompt_lr=.03, dropout=.1, seed=0)|changes)
    backbone = random_backbone(WORDS, seed=0)
    return backbone, new_prompt(prompt, backbone, length=config.length, seed=0), config

def losses(method, prompt, **changes):
    b,p,config = cell(method, prompt, **changes); was = torch.get_num_threads(); torch.set_num_threads(1)
    try: return [r['loss'] for r in pretrain(b, p, suite().tasks('train'), config)]
    finally: torch.set_num_threads(was)

def golden_file(method, prompt, packed): return GOLDEN/f"pretrain_{method}_{prompt}{'_packed'*packed}.txt"

@pytest.mark.outcome
@pytest.mark.parametrize('packed', [False,True])
@pytest.mark.parametrize('method,prompt', CELLS)
def test_losses_have_not_moved(method, prompt, packed):
    "Dropout draws one number per position of a rectangle or of a row, so the two have goldens of their own"
    want = [float(x) for x in golden_file(method, prompt, packed).read_text().split()]
    assert len(want)==10 and losses(method, prompt, packed=packed)==pytest.approx(want, rel=2.5e-5)     # other roundings, weights nudged by 1e-6: at most 4e-6

def test_packing_is_chosen_where_padding_would_waste_a_quarter():
    import promptbench.train.pretrain as page
    def kind(lengths, **changes):
        pairs = [([5]*n+[1],[6,1]) for n in lengths]; b = random_backbone(WORDS); config = PretrainConfig(prompt='shallow', batch_size=4, **changes)
        return next(iter(page._updates(b, new_prompt('shallow', b, length=3, seed=0), pairs, config, None)))
    alike,uneven = [10]*16,[2,40]*8
    assert not isinstance(kind(alike), list) and isinstance(kind(uneven[:4]), list)
    assert isinstance(kind(alike, packed=True), list) and not isinstance(kind(uneven[:4], packed=False), list)

@pytest.mark.outcome
@pytest.mark.parametrize('method,prompt', CELLS)
def test_packed_equals_padded(method, prompt):
    "Without dropout, up to rounding, as long as rounding has not been blown up by the optimiser"
    def run(**changes):
        b,p,config = cell(method, prompt, dropout=0., examples=40, **changes); rows = list(pretrain(b, p, suite().tasks('train'), config)); return rows,[*b.model.parameters(),*p.parameters()]
    (a,_),(b,_),(c,_) = run(packed=False),run(packed=True, row_tokens=30),run(packed=True)
    assert [r['loss'] for r in b]==pytest.approx([r['loss'] for r in a], abs=2e-4) and [r['loss'] for r in c]==pytest.approx([r['loss'] for r in a], abs=2e-4)
    for x,y,z in zip(a, b, c):
        assert x['examples']==y['examples']==z['examples'] and x['tokens']==y['tokens']==z['tokens']==y['positions']==z['positions']<=x['positions']
        assert x['grad_norm']==pytest.approx(y['grad_norm'], rel=1e-3)
    assert sum(r['positions'] for r in a)>sum(r['positions'] for r in b)

@pytest.mark.outcome
@pytest.mark.parametrize('method,prompt', CELLS)
def test_only_what_is_meant_is_trained(method, prompt):
    b,p,config = cell(method, prompt, dropout=0.); before,start,tasks = weight_hashes(b),[x.detach().clone() for x in p.parameters()],suite().tasks('train')
    all_examples = make_batch(encode_examples(b.tokenizer, mixture(tasks, 80, seed=0)))
    def loss():
        with torch.no_grad(): return token_nll(b, p)(all_examples).mean().item()
    first = loss(); list(pretrain(b, p, tasks, config)); after = weight_hashes(b)
    if trains(method)[0]: assert all(before[n]!=after[n] for n in before)
    else: assert before==after
    assert all(((x-y)!=0).all() for x,y in zip(p.parameters(), start)) and len(list(p.parameters()))==trains(method)[1]
    assert not b.model.training and not any(x.requires_grad for x in b.model.parameters())
    assert loss()<first

def test_none_does_nothing():
    b,p,config = cell('none','none'); before = weight_hashes(b)
    assert list(pretrain(b, p, suite().tasks('train'), config))==[] and weight_hashes(b)==before

def test_seed_decides_and_dropout_counts():
    a = losses('T+P','shallow'); assert a==losses('T+P','shallow') and a!=losses('T+P','shallow', seed=1) and a!=losses('T+P','shallow', dropout=0.)

def test_rates():
    same = losses('T+P','shallow', prompt_lr=None, lr=1e-3); assert same==losses('T+P','shallow', prompt_lr=1e-3, lr=1e-3) and same!=losses('T+P','shallow', prompt_lr=.1, lr=1e-3)

@pytest.mark.outcome
@pytest.mark.parametrize('method,prompt', [('T-only','none'), ('P-only','deep')])
def test_micro_batches_change_nothing(method, prompt):
    def run(tokens):
        b,p,config = cell(method, prompt, dropout=0.); return [r['loss'] for r in pretrain(b, p, suite().tasks('train'), config, micro_tokens=tokens)]
    assert run(40)==pytest.approx(run(None), abs=1e-4)

def test_budget_is_counted():
    b,p,config = cell('T+P','shallow', examples=83); tasks = suite().tasks('train'); rows = list(pretrain(b, p, tasks, config))
    used = mixture(tasks, 83, seed=0); tokens = sum(len((e.source+' '+e.target).split())+2 for e in used)
    assert rows[-1]['budget']==dict(updates=11, examples=83, tokens=tokens, flops=flops(b, tokens))
    body = sum(p.numel() for n,p in b.model.named_parameters() if n!='shared.weight')
    assert flops(b, 10)==60*body and flops(b, 10, False)==40*body
    assert [r['step'] for r in rows]==list(range(11)) and sorted(r['examples'] for r in rows)==[3]+[8]*10 and all(x['seconds']<=y['seconds'] for x,y in zip(rows, rows[1:]))

def count(examples): return collections.Counter(e.id.split('/')[0] for e in examples)

def test_even_mixture():
    tasks = suite().tasks('train')
    assert count(mixture(tasks, 30, seed=0))==dict(long=10, short=10, skips=10)
    assert count(mixture(tasks, 120, seed=0))==dict(short=20, skips=45, long=55)
    every = mixture(tasks, None, seed=0); assert count(every)==dict(long=120, short=20, skips=45) and len({(e.id,e.source) for e in every})==185
    assert mixture(tasks, 50, seed=3)==mixture(tasks, 50, seed=3)!=mixture(tasks, 50, seed=4)
    long = [e for e in mixture(tasks, 60, seed=0) if e.id.startswith('long')]; assert sum(e.source.startswith('say') for e in long)==10
    with pytest.raises(UserError, match='have only 185; ask for at most'): mixture(tasks, 186, seed=0)

def test_proportional_mixture():
    tasks = suite().tasks('train')
    assert count(mixture(tasks, 100, seed=0, rule='proportional'))['long']==pytest.approx(60, abs=4)
    capped = count(mixture(tasks, None, seed=0, rule='proportional', cap=20)); assert capped==dict(long=40, short=20, skips=35)
    assert len(mixture(tasks, 100, seed=0, rule='proportional'))==100

def test_bad_input():
    tasks = suite().tasks('train')
    for bad,said in [(dict(method='fomaml'), 'method must be one of'), (dict(method='T-only', prompt='deep'), 'has no prompt'), (dict(method='P-only', prompt='none'), 'trains a prompt'),
                     (dict(batch_size=0), 'batch_size must be above 0'), (dict(lr=-1), 'lr must be above'), (dict(examples=0), 'examples must be above 0'), (dict(row_tokens=0), 'row_tokens must be above 0')]:
        with pytest.raises(UserError, match=said): PretrainConfig(**bad)
    b,p,config = cell('T+P','shallow')
    with pytest.raises(UserError, match="got a prompt of kind 'deep'"): next(pretrain(b, new_prompt('deep', b, length=3), tasks, config))
    with pytest.raises(UserError, match='one prompt of length 3, got 1 of length 4'): next(pretrain(b, new_prompt('shallow', b, length=4), tasks, config))
    with pytest.raises(UserError, match='at least one task'): next(pretrain(b, p, [], config))
    with pytest.raises(UserError, match='loss must stay finite|gradients must stay finite'): list(pretrain(b, p, tasks, replace(config, lr=1e30)))

def test_presets_build():
    for name in PRESETS:
        for method,prompt in CELLS+[('none','none')]: assert preset(name, method=method, prompt=prompt).method==method
    assert preset('paper', method='T+P', prompt='deep')==PretrainConfig(prompt='deep', mixture='proportional')
    with pytest.raises(UserError, match='preset must be one of'): preset('huge')

CHILD = """
import sys; sys.path.insert(0, sys.argv[1])
from test_pretrain import *
b,p,config = cell(sys.argv[2], sys.argv[3])
for row in pretrain(b, p, suite().tasks('train'), config, folder=sys.argv[4], every=3): print(row['step'], flush=True)
"""
@pytest.mark.parametrize('method,prompt', [('T+P','deep')])
def test_killed_run_goes_on_with_the_same_numbers(tmp_path, method, prompt):
    b,p,config = cell(method, prompt); tasks = suite().tasks('train'); want = [r['loss'] for r in pretrain(b, p, tasks, config)]
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=f'{Path(__file__).parent.parent}:{os.environ.get("PYTHONPATH", "")}')
    child = subprocess.Popen([sys.executable, '-c', CHILD, str(Path(__file__).parent), method, prompt, str(tmp_path/'run')], stdout=subprocess.PIPE, text=True, env=env)
    for line in child.stdout:
        if int(line)==7: child.send_signal(signal.SIGKILL); break
    assert child.wait()==-signal.SIGKILL; child.stdout.close()
    b2,p2,_ = cell(method, prompt); rows = list(pretrain(b2, p2, tasks, config, folder=tmp_path/'run', every=3))
    assert [r['loss'] for r in rows]==pytest.approx(want, abs=1e-6) and [r['step'] for r in rows]==list(range(10))
    assert all(torch.allclose(x, y, atol=1e-6) for x,y in zip([*b2.model.parameters(), *p2.parameters()], [*b.model.parameters(), *p.parameters()]))
    assert rows[-1]['budget']['updates']==10 and all(x['seconds']<=y['seconds'] for x,y in zip(rows, rows[1:]))

@pytest.mark.parametrize('method,prompt,packed', [(*c,True) for c in CELLS]+[(*CELLS[-1],False)])
def test_stopped_run_goes_on(tmp_path, method, prompt, packed):
    changes = dict(packed=packed, row_tokens=40); tasks = suite().tasks('train'); b,p,config = cell(method, prompt, **changes); want = [r['loss'] for r in pretrain(b, p, tasks, config)]
    for stop in (2, 7, None):
        b2,p2,_ = cell(method, prompt, **changes); got = [r['loss'] for r in itertools.islice(pretrain(b2, p2, tasks, config, folder=tmp_path, every=3), stop)]
        assert got==want[:stop]
    assert weight_hashes(b2)==weight_hashes(b) and all(torch.equal(x, y) for x,y in zip(p2.parameters(), p.parameters()))

def test_checkpoints_of_another_run_are_refused(tmp_path):
    b,p,config = cell('T+P','shallow'); tasks = suite().tasks('train'); list(itertools.islice(pretrain(b, p, tasks, config, folder=tmp_path, every=3), 4))
    def go(seed=0, tasks=tasks, **changes): b,p,config = cell('T+P','shallow', **changes); return next(pretrain(random_backbone(WORDS, seed=seed), p, tasks, config, folder=tmp_path))
    go()
    for other,said in [(dict(lr=.1), 'other config'), (dict(tasks=tasks[:3]), 'other data'), (dict(seed=1), 'other start')]:
        with pytest.raises(UserError, match=said): go(**other)

if __name__=='__main__':
    GOLDEN.mkdir(exist_ok=True)
    for c in itertools.product(CELLS, [False,True]): golden_file(*c[0], c[1]).write_text(''.join(f'{l:.6f}\n' for l in losses(*c[0], packed=c[1]))); print(*c, 'written')
