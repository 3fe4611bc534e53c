"A bank of tasks against the same tasks one by one, and a backbone that does not move"
import itertools, pytest, torch
from dataclasses import replace
from promptbench.core import UserError
from promptbench.backbone import fingerprint, random_backbone
from promptbench.batches import encode_examples, make_batch
from promptbench.fit import token_nll
from promptbench.inits import new_prompt
from promptbench.suite import Dataset, Example, Suite
from promptbench.templates import Template
from promptbench.tune import TuneConfig, pieces, tune

WORDS = [f'w{i}' for i in range(40)]
CONFIG = TuneConfig(steps=20, lr=.01, length=5)

@pytest.fixture(scope='module')
def backbone(): return random_backbone(WORDS, seed=3)

def shots(k, n=8):
    "Examples whose lengths and contents depend on k"
    text = lambda lo, m: ' '.join(WORDS[(7*i*k+3*j+k)%40] for i in range(1) for j in range(lo, lo+m))
    return [Example(f't{k}/train/{i}', text(i, 2+(i*k)%7+2*k), text(i+k, 1+i%3)) for i in range(n)]

TASKS = [shots(k) for k in range(9)]

def bank_of(backbone, tasks, prompt='shallow', config=CONFIG):
    t = tune(backbone, prompt, tasks, config); rows = list(t)
    return t.bank.table.detach(),rows

@pytest.mark.parametrize('kind', ['shallow','deep'])
def test_bank_equals_single_runs(backbone, kind):
    together,_ = bank_of(backbone, TASKS[:8], kind)
    for i in range(0,8,3):
        alone,_ = bank_of(backbone, TASKS[i:i+1], kind)
        torch.testing.assert_close(together[i:i+1], alone, atol=1e-4, rtol=0)

@pytest.mark.parametrize('kind', ['shallow','deep'])
def test_single_run_equals_a_plain_loop(backbone, kind):
    "The obvious way: one task, transformers' Adafactor, torch's clipping"
    from transformers.optimization import Adafactor
    prompt = new_prompt(kind, backbone, length=5, seed=0); batch = make_batch(encode_examples(backbone.tokenizer, TASKS[2]))
    opt = Adafactor(prompt.parameters(), lr=.01, scale_parameter=False, relative_step=False); losses = []
    for p in backbone.model.parameters(): p.requires_grad_(False)
    for _ in range(20):
        opt.zero_grad(); loss = token_nll(backbone, prompt)(batch).sum()/batch.tgt_mask_BU.sum(); loss.backward()
        torch.nn.utils.clip_grad_norm_(prompt.parameters(), 1.); opt.step(); losses.append(loss.item())
    mine,rows = bank_of(backbone, TASKS[2:3], kind)
    torch.testing.assert_close(mine, prompt.table.detach(), atol=1e-4, rtol=0)
    assert [r['loss'] for r in rows]==pytest.approx(losses, abs=1e-4)

@pytest.mark.parametrize('kind', ['shallow','deep'])
def test_one_more_task_changes_no_other(backbone, kind):
    eight,_ = bank_of(backbone, TASKS[:8], kind); nine,_ = bank_of(backbone, TASKS, kind)
    torch.testing.assert_close(nine[:8], eight, atol=1e-4, rtol=0)

def test_pieces_change_nothing(backbone):
    whole,rows = bank_of(backbone, TASKS[:5], config=replace(CONFIG, chunk_tokens=10**6)); cut,more = bank_of(backbone, TASKS[:5], config=replace(CONFIG, chunk_tokens=100))
    torch.testing.assert_close(cut, whole, atol=1e-4, rtol=0)
    for a,b in zip(rows, more): assert a['losses']==pytest.approx(b['losses'], abs=1e-4) and a['tokens']==b['tokens'] and a['examples']==b['examples']==40

@pytest.mark.parametrize('kind', ['shallow','deep'])
def test_frozen_means_frozen(backbone, kind):
    before = fingerprint(backbone); start = new_prompt(kind, backbone, length=5, seed=0); kept = start.table.detach().clone()
    bank,_ = bank_of(backbone, TASKS[:3], start)
    assert fingerprint(backbone)==before and torch.equal(start.table, kept)
    assert ((bank-kept)!=0).all(), 'a part of the prompt did not move'
    assert all(p.grad is None and not p.requires_grad for p in backbone.model.parameters()) and not backbone.model.training

def test_start_is_carried_over_or_fresh(backbone):
    zero = replace(CONFIG, steps=0)
    fresh,_ = bank_of(backbone, TASKS[:3], 'deep', replace(zero, seed=4)); want = new_prompt('deep', backbone, length=5, seed=4).table
    assert all(torch.equal(f, want[0]) for f in fresh)
    three = new_prompt('deep', backbone, length=5, n=3, seed=1); mine,_ = bank_of(backbone, TASKS[:3], three, zero)
    assert torch.equal(mine, three.table)
    carried,_ = bank_of(backbone, TASKS[:3], three.select([1]), zero); assert all(torch.equal(c, three.table[1]) for c in carried)

def test_rows(backbone):
    _,rows = bank_of(backbone, TASKS[:4], config=replace(CONFIG, chunk_tokens=300))
    for r in rows:
        assert len(r['losses'])==len(r['grad_norms'])==4 and r['loss']==pytest.approx(sum(r['losses'])/len(r['losses']))
    assert [r['step'] for r in rows]==list(range(20))
    t = tune(backbone, 'shallow', TASKS[:4], CONFIG); assert len(t)==len(list(t))

def test_seed_and_repeat(backbone):
    a,_ = bank_of(backbone, TASKS[:2]); b,_ = bank_of(backbone, TASKS[:2]); c,_ = bank_of(backbone, TASKS[:2], config=replace(CONFIG, seed=1))
    assert torch.equal(a, b) and not torch.equal(a, c)

def test_prompt_rate(backbone):
    a,_ = bank_of(backbone, TASKS[:2], config=replace(CONFIG, prompt_lr=.05)); b,_ = bank_of(backbone, TASKS[:2], config=replace(CONFIG, lr=.05))
    assert torch.equal(a, b)

def test_a_task_without_shots_keeps_its_start(backbone):
    bank,rows = bank_of(backbone, [TASKS[0],[],TASKS[2]]); start = new_prompt('shallow', backbone, length=5, seed=0).table[0]
    assert torch.equal(bank[1], start) and not torch.equal(bank[0], start) and rows[0]['losses'][1]==0
    torch.testing.assert_close(bank[[0,2]], bank_of(backbone, [TASKS[0],TASKS[2]])[0], atol=1e-4, rtol=0)

def test_tasks_of_a_suite(backbone):
    records = [dict(x=w, y=WORDS[(i+1)%3]) for i,w in enumerate(WORDS)]
    suite = Suite('s', [Dataset('d', 'c', 'eval', dict(train=records, validation=records[:4]), [Template(n, t+' {{x}} ||| {{y}}', 'w0 ||| w1 ||| w2') for n,t in (('a','w5'), ('b','w6 w7'))])])
    tasks = suite.tasks('eval'); config = replace(CONFIG, shots=4, steps=3)
    mine,rows = bank_of(backbone, tasks, config=config); same,_ = bank_of(backbone, [t.shots(4, config.seed) for t in tasks], config=config)
    assert torch.equal(mine, same) and rows[0]['examples']==8
    none,rows = bank_of(backbone, tasks, config=replace(config, shots=0)); assert rows==[] and len(none)==2
    with pytest.raises(UserError, match='d/a must have 99'): tune(backbone, 'shallow', tasks, replace(config, shots=99))

def test_bf16_learns(backbone):
    low = backbone.clone(); low.precision = 'bf16'; bank,rows = bank_of(low, TASKS[:2], config=replace(CONFIG, lr=.1))
    assert bank.dtype==torch.float32 and rows[-1]['loss']<rows[0]['loss']

def test_pieces_respect_the_budget():
    pairs = [[([1]*((i*37)%50+1), [1]*(i%5+1))]*(1+i%4) for i in range(40)]+[[]]; cut = pieces(pairs, 300)
    assert sorted(i for b in cut for i in b.index_B.tolist())==sorted(i for i,p in enumerate(pairs) for _ in p)
    assert all(len(b)==1 or b.src_BT.numel()+b.tgt_BU.numel()<=300 for b in cut)
    real = sum(b.tokens for b in cut); assert real==sum(len(s)+len(t) for p in pairs for s,t in p) and sum(b.src_BT.numel()+b.tgt_BU.numel() for b in cut)<1.2*real

@pytest.mark.parametrize('bad', [dict(lr=0), dict(steps=-1), dict(shots=-2), dict(prompt_lr=-1), dict(clip=0), dict(chunk_tokens=0)])
def test_bad_settings(bad):
    with pytest.raises(UserError, match=f'{next(iter(bad))} must be .* got {next(iter(bad.values()))}'): TuneConfig(**bad)

def test_bad_calls(backbone):
    with pytest.raises(UserError, match='at least one task'): tune(backbone, 'shallow', [], CONFIG)
    with pytest.raises(UserError, match='needs a prompt'): tune(backbone, 'none', TASKS[:2], CONFIG)
    with pytest.raises(UserError, match='prompt must be one of'): tune(backbone, 'depp', TASKS[:2], CONFIG)
