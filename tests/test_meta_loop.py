"""The loop of the meta-learners: golden losses, budgets, tasks, what must not matter, bad input.

`python tests/test_meta_loop.py` writes the golden losses anew. Do so only when a change of numbers is meant, and say why in the commit that changes them."""
import itertools, pytest, torch
from dataclasses import replace
from pathlib import Path
from promptbench.base.core import UserError
from promptbench.model.backbone import weight_hashes
from promptbench.prompt.inits import new_prompt
from promptbench.train.draws import meta_batches, task_batches
from promptbench.train.meta import META_PRESETS, MetaConfig, meta_preset, meta_train, meta_methods
from promptbench.train.pretrain import flops
from meta_cell import CELLS, cell, run, suite

GOLDEN = Path(__file__).parent/'golden'

def golden(method, prompt): return [r['loss'] for r in run(method, prompt, updates=10, dropout=.1)[0]]
def golden_file(method, prompt): return GOLDEN/f'meta_{method}_{prompt}.txt'

@pytest.mark.outcome
@pytest.mark.parametrize('method,prompt', CELLS)
def test_losses_have_not_moved(method, prompt):
    """The first loss is rounding alone. Then FOMAML holds to a few millionths, also with weights nudged by 1e-6; Reptile takes a step
    of Adafactor per task, which makes full steps of a row of rounding errors: up to 2e-3 of the loss within ten updates"""
    want = [float(x) for x in golden_file(method, prompt).read_text().split()]; got = golden(method, prompt); assert len(want)==10 and got[0]==pytest.approx(want[0], rel=1e-5)
    assert got==pytest.approx(want, rel=dict(fomaml=5e-5, reptile=1e-2)[method])

@pytest.mark.outcome
@pytest.mark.parametrize('method,prompt', CELLS)
def test_everything_learns(method, prompt):
    b0,p0,_ = cell(method, prompt); before = weight_hashes(b0); rows,b,p = run(method, prompt, updates=10, lr=.01); after = weight_hashes(b)
    assert all(before[n]!=after[n] for n in before) and ((p.table-p0.table)!=0).all()
    assert rows[-1]['loss']<rows[0]['loss']-.5 and not b.model.training and not any(x.requires_grad for x in b.model.parameters())
    assert [r['step'] for r in rows]==list(range(10)) and rows[-1]['drift']>rows[0]['drift']>0 and all(r['moved']>0 and len(r['inner'])==3 for r in rows)

def test_budgets_are_counted():
    tasks = suite().tasks('train'); b,p,config = cell(examples=43*8+5, tasks=10); rows = list(meta_train(b, p, tasks, config))
    draws = list(itertools.islice(task_batches(tasks, 8, seed=0), 43)); n = lambda part: sum(len(s)+len(t) for _,e in draws for s,t in b.pairs(e))
    last = rows[-1]['budget']; assert last['updates']==5 and last['examples']==344==last['passes'] and last['tokens']==n(None)==sum(r['tokens'] for r in rows)
    assert [r['examples'] for r in rows]==[80]*4+[24] and flops(b, last['tokens'], False)<last['flops']<flops(b, last['tokens'])
    same = list(meta_train(*cell(support='same', updates=2)[:2], tasks, replace(config, support='same', examples=None, updates=2)))[-1]['budget']
    assert same['examples']==2*10*4 and same['passes']==2*10*8 and same['updates']==2
    whole = list(meta_train(*cell()[:2], tasks, replace(config, examples=None)))[-1]['budget']; assert whole['examples']==8*(20+20+5+10+5)
    limit = whole['flops']*2.5; paid = list(meta_train(*cell()[:2], tasks, replace(config, examples=None, flops=limit)))[-1]['budget']
    assert .9*limit<paid['flops']<=limit and paid['examples']>2*whole['examples']

def test_each_batch_belongs_to_one_task_and_is_used_once():
    tasks = suite().tasks('train'); count = lambda rule, **k: [t.name for t,_ in task_batches(tasks, 8, seed=1, rule=rule, **k)]
    for rule in ('even','proportional'):
        got = list(task_batches(tasks, 8, seed=1, rule=rule)); assert all(len(e)==8 and {x.id.split('/')[0] for x in e}=={t.dataset} for t,e in got)
        assert len({(t.name,x.id) for t,e in got for x in e})==8*60 and len(got)==60 and count(rule)==count(rule)
    assert {n.split('/')[0] for n in count('even')[:3]}=={'long','short','skips'} and count('even')[:12].count('short/say')==4
    first = count('proportional')[:30]; assert sum(n.startswith('long') for n in first)>=15
    assert len(count('proportional', cap=16))==2*5
    with pytest.warns(UserWarning, match='instead of 520 examples the tasks gave 480'): assert len(list(meta_batches(tasks, cell(examples=520, tasks=100)[2])))==1
    size = lambda e: len(e.source)+2*len(e.target); sizes = [[size(x) for x in e] for t,e in task_batches(tasks, 8, seed=1) if t.name=='long/say']
    assert sum(max(b)-min(b) for b in sizes)<=2*(max(map(max, sizes))-min(map(min, sizes))) # two sorted runs of at most 16 batches

@pytest.mark.outcome
def test_micro_batches_and_lanes_change_nothing():
    "In double precision: Adafactor turns a row of rounding errors into a row of full steps, and Reptile takes such a step per task"
    tasks = suite().tasks('train')
    def losses(method, tokens, **changes): b,p,c = cell(method, updates=3, **changes); b.model.double(); return [[r['loss'], r['moved'], r['grad_norm'], *r['inner']] for r in meta_train(b, p, tasks, c, micro_tokens=tokens)]
    for method in meta_methods():
        want = losses(method, None)
        for other in (losses(method, 30), losses(method, 50, lanes=3)): torch.testing.assert_close(torch.tensor(other), torch.tensor(want), atol=1e-5, rtol=1e-5)
    assert losses('fomaml', 30, loss='example')[0]==pytest.approx(losses('fomaml', None, loss='example')[0], abs=1e-5) and losses('fomaml', 30, loss='example')[0]!=pytest.approx(losses('fomaml', 30)[0], abs=1e-5)

@pytest.mark.outcome
def test_loss_before_adaptation():
    def go(**how):
        b,p,config = cell(updates=6, inner_lr=.3)
        return list(meta_train(b, p, suite().tasks('train'), config, **how))
    rows,plain = go(before=True),go()                                                            # on as many threads as there are, both
    assert [r['loss'] for r in rows]==[r['loss'] for r in plain] and all(r['before']>r['loss'] for r in rows) and 'before' not in plain[0]
    assert all(r['inner'][0]>r['inner'][-1] for r in rows)

def test_bad_input():
    tasks = suite().tasks('train')
    for bad,said in [(dict(method='maml'), 'method must be one of'), (dict(prompt='none'), "got prompt='none'"), (dict(steps=0), 'steps must be above 0'), (dict(lr=float('nan')), 'lr must be above 0'),
                     (dict(inner='lbfgs'), 'inner must be one of'), (dict(carry='batch'), "which is 'fresh'"), (dict(examples=1, flops=1.), 'one of examples, updates and flops'), (dict(loss='sum'), 'loss must be one of')]:
        with pytest.raises(UserError, match=said): MetaConfig(**bad)
    b,p,config = cell()
    def go(p=p, tasks=tasks, **changes): return next(meta_train(b, p, tasks, replace(config, **changes)))
    with pytest.raises(UserError, match="got a prompt of kind 'deep'"): go(new_prompt('deep', b, length=3))
    with pytest.raises(UserError, match="got a prompt of kind 'none'"): go(None)
    with pytest.raises(UserError, match='one prompt of length 3, got 2 of length 3'): go(p.repeat(2))
    with pytest.raises(UserError, match='give 520 examples in batches of 8.*got a budget of 528'): go(examples=528)
    with pytest.raises(UserError, match='got a budget of 7;'): go(examples=7)
    with pytest.raises(UserError, match='at least one task'): go(tasks=[])
    with pytest.raises(UserError, match='no training task has the 800 examples'): go(updates=1, batch_size=200)
    with pytest.raises(UserError, match='must pay for one update'): go(flops=10.)
    with pytest.raises(UserError, match='must stay finite'): list(meta_train(*cell()[:2], tasks, replace(config, lr=1e30)))
    with pytest.raises(UserError, match='preset must be one of'): meta_preset('huge')
    assert all(meta_preset(n, method=m, prompt=p).method==m for n in META_PRESETS for m,p in CELLS) and meta_preset('paper', mixture='even')==MetaConfig()
    assert [meta_preset('code', method=m).support for m in meta_methods()]==['same','different']

if __name__=='__main__':
    GOLDEN.mkdir(exist_ok=True)
    for method,prompt in CELLS: golden_file(method, prompt).write_text('\n'.join(f'{x:.6f}' for x in golden(method, prompt))+'\n'); print('wrote', golden_file(method, prompt).name)
