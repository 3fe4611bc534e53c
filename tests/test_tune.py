"A bank of tasks against the same tasks one by one, and a backbone that does not move"
import itertools, warnings, pytest, torch
from dataclasses import replace
from promptbench.base.core import UserError
from promptbench.model.backbone import random_backbone, weight_hashes
from promptbench.model.batch import make_batch
from promptbench.model.tokens import encode_examples
from promptbench.train.fit import token_nll
from promptbench.prompt.inits import new_prompt
from promptbench.data.suite import Dataset, Example, Suite
from promptbench.data.templates import Template
from promptbench.train.tune import TuneConfig, pieces, tune

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

@pytest.mark.outcome
@pytest.mark.parametrize('kind', ['shallow','deep'])
def test_bank_equals_single_runs(backbone, kind):
    together,_ = bank_of(backbone, TASKS[:8], kind)
    for i in range(8):
        alone,_ = bank_of(backbone, TASKS[i:i+1], kind)
        torch.testing.assert_close(together[i:i+1], alone, atol=1e-4, rtol=0)

@pytest.mark.outcome
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

@pytest.mark.parametrize('tokens', [100,300,1])
def test_pieces_change_nothing(backbone, tokens):
    whole,rows = bank_of(backbone, TASKS[:5], config=replace(CONFIG, chunk_tokens=10**6)); cut,more = bank_of(backbone, TASKS[:5], config=replace(CONFIG, chunk_tokens=tokens))
    torch.testing.assert_close(cut, whole, atol=1e-5, rtol=0)
    for a,b in zip(rows, more): assert a['losses']==pytest.approx(b['losses'], abs=1e-4) and a['tokens']==b['tokens'] and a['examples']==b['examples']==40

@pytest.mark.parametrize('kind', ['shallow','deep'])
def test_frozen_means_frozen(backbone, kind):
    before = weight_hashes(backbone); start = new_prompt(kind, backbone, length=5, seed=0); kept = start.table.detach().clone()
    bank,_ = bank_of(backbone, TASKS[:3], start)
    assert weight_hashes(backbone)==before and torch.equal(start.table, kept)
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

@pytest.mark.outcome
def test_bf16_learns(backbone):
    low = backbone.clone(); low.precision = 'bf16'; bank,rows = bank_of(low, TASKS[:2], config=replace(CONFIG, lr=.1))
    assert bank.dtype==torch.float32 and rows[-1]['loss']<rows[0]['loss']

def test_pieces_respect_the_budget():
    pairs = [[([1]*((i*37)%50+1), [1]*(i%5+1))]*(1+i%4) for i in range(40)]+[[]]; cut = pieces(pairs, 300)
    assert sorted(i for b in cut for i in b.index_B.tolist())==sorted(i for i,p in enumerate(pairs) for _ in p)
    assert all(len(b)==1 or b.src_BT.numel()+b.tgt_BU.numel()<=300 for b in cut)
    real = sum(b.tokens for b in cut); assert real==sum(len(s)+len(t) for p in pairs for s,t in p) and sum(b.src_BT.numel()+b.tgt_BU.numel() for b in cut)<1.2*real

def test_long_answers_keep_to_themselves():
    pairs = [[([1]*20, [1]*2)]*7+[([1]*20, [1]*50)]]*4; cut = pieces(pairs, 300)
    assert all(len(set(b.tgt_mask_BU.sum(1).tolist()))==1 for b in cut)

def test_the_output_layer_reads_real_targets_only(backbone):
    seen = []; hook = backbone.model.lm_head.register_forward_hook(lambda m, args, out: seen.append(out.shape))
    try: bank_of(backbone, TASKS[:3], config=replace(CONFIG, steps=1))
    finally: hook.remove()
    real = sum(len(t) for task in TASKS[:3] for _,t in backbone.pairs(task)); assert sum(len(s)==2 and s[0] for s in seen)==real

def test_nothing_is_computed_for_frozen_weights(backbone, monkeypatch):
    "No weight asks for a gradient while tuning, and nothing the size of the vocabulary's weights is kept for one"
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.data_ptr()), t)[1], lambda t: t): bank_of(backbone, TASKS[:2], config=replace(CONFIG, steps=1))
    assert kept and not any(p.requires_grad for p in backbone.model.parameters())

# --- early stopping --------------------------------------------------------------------------------------------------
STOP = replace(CONFIG, steps=20, lr=.2, patience=2, min_delta=.06)

@pytest.mark.outcome
@pytest.mark.parametrize('kind', ['shallow','deep'])
def test_a_stopped_prompt_does_not_move_and_the_others_do_not_notice(backbone, kind):
    t = tune(backbone, kind, TASKS[:4], STOP); tables,rows = [],[]
    for r in t: rows.append(r); tables.append(t.live.table.detach().clone())
    losses = torch.tensor([r['losses'] for r in rows]); ends = []
    for i in range(4):
        best,wait,end = float('inf'),0,len(rows)-1
        for k,l in enumerate(losses[:,i].tolist()):
            best,wait = (l,0) if l<best-STOP.min_delta else (best,wait+1)
            if wait>=2: end = k; break
        ends.append(end); assert all(torch.equal(x[i], tables[end][i]) for x in tables[end:]), 'a stopped prompt moved'
        assert (losses[end:,i]==losses[end,i]).all()
        free,_ = bank_of(backbone, TASKS[i:i+1], kind, replace(STOP, patience=None, steps=end+1)); torch.testing.assert_close(tables[-1][i:i+1], free, atol=1e-4, rtol=0)
    assert len(set(ends))>1 and min(ends)<len(rows)-1, 'all stopped together: the test shows nothing'

@pytest.mark.outcome
def test_stopped_rows_leave_the_batch(backbone):
    _,rows = bank_of(backbone, TASKS[:4], config=STOP); left = [r['examples'] for r in rows]
    assert left[0]==32 and left[-1]<32 and left==sorted(left, reverse=True) and rows[-1]['tokens']<rows[0]['tokens'] and len(rows)<=20

def test_all_stopped_ends_the_run(backbone):
    bank,rows = bank_of(backbone, TASKS[:2], config=replace(STOP, min_delta=100., steps=50)); assert len(rows)==3

# --- killed and started again ----------------------------------------------------------------------------------------
@pytest.mark.parametrize('kind,config', [('shallow', CONFIG), ('deep', replace(CONFIG, dropout=.1)), ('shallow', STOP)])
def test_a_killed_tuning_goes_on_with_the_same_numbers(backbone, tmp_path, kind, config):
    whole,rows = bank_of(backbone, TASKS[:4], kind, config)
    for stop in (7,13): list(itertools.islice(tune(backbone, kind, TASKS[:4], config, folder=tmp_path, every=5), stop))
    t = tune(backbone, kind, TASKS[:4], config, folder=tmp_path, every=5); again = list(t)
    keys = ('step','loss','losses','grad_norms','examples','tokens')
    assert [[r[k] for k in keys] for r in again]==[[r[k] for k in keys] for r in rows] and torch.equal(t.bank.table, whole)
    assert all(a['seconds']<=b['seconds'] for a,b in zip(again, again[1:]))

def test_a_folder_of_another_tuning_is_refused(backbone, tmp_path):
    list(tune(backbone, 'shallow', TASKS[:2], CONFIG, folder=tmp_path, every=5))
    for what,call in (('data', ('shallow', TASKS[1:3], CONFIG)), ('config', ('shallow', TASKS[:2], replace(CONFIG, lr=.5))), ('start', ('deep', TASKS[:2], CONFIG))):
        with pytest.raises(UserError, match=f'another tuning .other.*{what}'): list(tune(backbone, *call, folder=tmp_path))

# --- the step that a GPU records -------------------------------------------------------------------------------------
def test_the_step_changes_everything_in_place(backbone, monkeypatch):
    "What a recorded graph needs: after a first pass, the same addresses and no look at a number"
    import promptbench.train.tune as page
    run = page.BankRun(backbone, new_prompt('shallow', backbone, length=5, n=3, seed=0), [backbone.pairs(t) for t in TASKS[:3]], CONFIG)
    places = lambda: [t.data_ptr() for t in (run.loss_N, run.bank.table, run.bank.table.grad, *[x for p in run.plan for x in (p.batch.src_BT, p.at_M, p.share_M)])]
    page.freeze(backbone); run.step(0); before = places(); run.step(1); run.step(2); assert places()==before
    class NoLook(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, f, types, args=(), kwargs=None):
            if f.name() in ('aten::_local_scalar_dense','aten::nonzero','aten::equal','aten::is_nonzero'): raise AssertionError(f'{f.name()}: a number was looked at')
            return f(*args, **(kwargs or {}))
    import transformers.masking_utils as masks
    monkeypatch.setattr(masks, 'is_tracing', lambda *_: True) # as it answers while a graph is recorded
    run.cuda = True
    with NoLook(): run.step(3)
    with NoLook(), pytest.raises(AssertionError, match='looked at'): run.opt.step()

def test_a_graph_needs_a_gpu(backbone):
    if torch.cuda.is_available(): pytest.skip('there is a GPU')
    with pytest.raises(UserError, match='compiled=True replays a CUDA graph'): list(tune(backbone, 'shallow', TASKS[:2], CONFIG, compiled=True))

def test_a_failed_recording_is_said_once_and_changes_nothing(backbone, monkeypatch):
    "Recording pretended: on this machine the attempt itself must fail, and the run goes on"
    if torch.cuda.is_available(): pytest.skip('there is a GPU: recording may succeed')
    import promptbench.train.tune as page
    plain,_ = bank_of(backbone, TASKS[:3]); start = page.BankRun.__init__
    def pretend(self, *args): start(self, *args); self.compiled = True
    monkeypatch.setattr(page.BankRun, '__init__', pretend); monkeypatch.setattr(torch.cuda, 'synchronize', lambda *_: None)
    with pytest.warns(UserWarning, match='could not be recorded') as said: tried,_ = bank_of(backbone, TASKS[:3])
    assert torch.equal(tried, plain) and len([w for w in said if 'recorded' in str(w.message)])==1

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU: the recorded step is tested only where there is one')
@pytest.mark.parametrize('kind', ['shallow','deep'])
def test_a_recorded_step_equals_a_plain_one(backbone, kind):
    gpu = backbone.clone().to('cuda'); banks = []
    for compiled in (True,False):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "the step could not be recorded")
            t = tune(gpu, kind, TASKS[:5], replace(STOP, steps=20), compiled=compiled); list(t)
        banks.append(t.bank.table.detach())
    gap = (banks[0]-banks[1]).abs(); assert gap.max()<1e-3 and gap.median()<1e-5   # a GPU adds up in any order: two plain runs differ by 3e-4 at most

@pytest.mark.outcome
@pytest.mark.parametrize('kind', ['shallow','deep'])
def test_a_decoder_only_backbone(kind):
    small = random_backbone(WORDS, seed=3, kind='llama'); config = replace(CONFIG, steps=5)
    together,rows = bank_of(small, TASKS[:3], kind, config)
    for i in range(3): torch.testing.assert_close(together[i:i+1], bank_of(small, TASKS[i:i+1], kind, config)[0], atol=1e-4, rtol=0)
    assert rows[-1]['loss']<rows[0]['loss']

@pytest.mark.parametrize('bad', [dict(lr=0), dict(patience=0), dict(min_delta=-1), dict(steps=-1), dict(shots=-2), dict(prompt_lr=-1), dict(clip=0), dict(chunk_tokens=0)])
def test_bad_settings(bad):
    with pytest.raises(UserError, match=f'{next(iter(bad))} must be .* got {next(iter(bad.values()))}'): TuneConfig(**bad)

def test_bad_calls(backbone):
    with pytest.raises(UserError, match='at least one task'): tune(backbone, 'shallow', [], CONFIG)
    with pytest.raises(UserError, match='needs a prompt'): tune(backbone, 'none', TASKS[:2], CONFIG)
    with pytest.raises(UserError, match='prompt must be one of'): tune(backbone, 'depp', TASKS[:2], CONFIG)
