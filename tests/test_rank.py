"Ranking against one full pass per choice"
from types import SimpleNamespace
import numpy as np, pytest, torch
from promptbench.base.core import UserError, rng
from promptbench.model.batch import make_batch
from promptbench.model.backbone import *
from promptbench.prompt.forward import *
from promptbench.prompt.inits import new_prompt
from promptbench.measure.rank import plan_batches, rank

torch.set_num_threads(1)
WORDS = [f'w{i}' for i in range(60)]

@pytest.fixture(scope='module')
def toy(): return random_backbone(WORDS, dim=16, layers=(2,1), seed=2)

def make_tasks(seed=0):
    "Four tasks: common choices, free choices, one with two to five choices, one with a single example"
    r = rng('rank', seed); text = lambda lo,hi: ' '.join(r.choice(WORDS) for _ in range(r.randint(lo,hi))); tasks = []
    for n,k in [(12,2),(9,4),(11,None),(1,3)]:
        common = tuple(text(1,3) for _ in range(k or 2)); es = []
        for i in range(n):
            choices = common if k==2 else tuple(text(1,6) for _ in range(k or r.randint(2,5)))
            es.append(SimpleNamespace(id=f'd/validation/{i}', source=text(1,25), choices=choices, gold=r.randrange(len(choices)), target=''))
        tasks.append(es)
    return tasks

@torch.no_grad()
def one_pass_per_choice(backbone, source, choice, prompt):
    ids = backbone.sources([source])[0],backbone.targets([choice])[0]; b = make_batch([ids])
    nll = sequence_nll(forward(backbone, b, prompt), b.tgt_BU, b.tgt_mask_BU); return -float(nll.sum()),len(ids[1])

@pytest.mark.parametrize('kind', ['none','shallow','deep'])
@pytest.mark.parametrize('bank', [False,True])
def test_equals_one_full_forward_per_choice(toy, kind, bank):
    tasks = make_tasks(); prompt = new_prompt(kind, toy, length=4, n=len(tasks) if bank else 1)
    for t,(es,s) in enumerate(zip(tasks, rank(toy, tasks, prompt, token_budget=600))):
        own = prompt.select([t if bank else 0]); assert len(s)==len(es) and s.gold.tolist()==[e.gold for e in es]
        for e,total,mean in zip(es, s.sum, s.mean):
            slow = [one_pass_per_choice(toy, e.source, c, own) for c in e.choices]
            np.testing.assert_allclose(total, [x for x,_ in slow], atol=1e-4); np.testing.assert_allclose(mean, [x/(n+1e-6) for x,n in slow], atol=1e-4)
            assert total.argmax()==np.argmax([x for x,_ in slow]) and mean.argmax()==np.argmax([x/n for x,n in slow])

def test_budget_and_company_change_nothing(toy):
    tasks = make_tasks(1); a,b,c = rank(toy, tasks),rank(toy, tasks, token_budget=1),[rank(toy, [t])[0] for t in tasks]
    for x,y,z in zip(a,b,c):
        for p,q,r in zip(x.sum, y.sum, z.sum): np.testing.assert_allclose(p, q, atol=1e-4); np.testing.assert_allclose(p, r, atol=1e-4)
        assert x.pred().tolist()==y.pred().tolist()==z.pred().tolist()

# ---- padding

def positions(costs, plan): return sum(len(rows)*(-(-np.array(costs)[rows]//4)*4).max(0).sum() for rows in plan)

@pytest.mark.parametrize('by', [0,1])
@pytest.mark.parametrize('n', [16,50,400])
def test_small_sets_of_unequal_length_are_not_mostly_padding(n, by):
    "Sixteen examples used to fill one batch, half of it padding; whichever side is unequal, a cut that saves more than a call is taken"
    costs = [((5+11*i*16//n)%200+1,4)[::1-2*by] for i in range(n)]; ours,full = plan_batches(costs, 4096),plan_batches(costs, 4096, call=1<<40)
    needed = positions(costs, [[i] for i in range(n)]); a,b = positions(costs, ours),positions(costs, full)
    assert sorted(sum(ours, []))==list(range(n)) and a+128*(len(ours)-len(full))<=b and needed/a>.75
    if n==16: assert needed/b<.65 and a<.75*b

def test_no_cut_costs_more_than_it_saves():
    r = rng('plan')
    for k in range(60):
        costs = [(r.randint(1,r.choice([8,300])),r.randint(1,r.choice([4,90]))) for _ in range(r.randint(1,120))]; budget,call = r.choice([64,1000,4096]),r.choice([1,50,128,10**6])
        plan = plan_batches(costs, budget, call=call); full = plan_batches(costs, budget, call=1<<40)
        assert sorted(sum(plan, []))==list(range(len(costs))) and positions(costs, plan)+call*len(plan)<=positions(costs, full)+call*len(full)
        assert all(len(rows)==1 or positions(costs, [rows])<=budget for rows in plan)
        assert all(len(plan_batches([costs[i] for i in rows], budget, call=call))==1 for rows in plan), 'what was planned must not be cut again'

def test_cuts_change_no_score(toy, monkeypatch):
    import promptbench.measure.rank as r
    tasks = make_tasks(8); seen,handle = watch(toy); monkeypatch.setitem(r.CALL, 'cpu', 8); a = rank(toy, tasks); cut = len(seen)
    monkeypatch.setitem(r.CALL, 'cpu', 1<<40); b = rank(toy, tasks); handle.remove(); assert cut>2*(len(seen)-cut)
    for x,y in zip(a, b):
        assert x.pred().tolist()==y.pred().tolist()
        for p,q in zip(x.sum, y.sum): np.testing.assert_allclose(p, q, atol=1e-5)

@pytest.mark.parametrize('rows', [1,4])
def test_choices_in_one_row_or_apart(toy, monkeypatch, rows):
    import promptbench.measure.rank as r
    tasks = make_tasks(5); prompt = new_prompt('deep', toy, length=3, n=4); a = rank(toy, tasks, prompt)
    monkeypatch.setattr(r, 'ROW', rows)
    for x,y in zip(a, rank(toy, tasks, prompt)):
        for p,q in zip(x.sum, y.sum): np.testing.assert_allclose(p, q, atol=1e-4)

def test_absolute_positions_go_apart(toy):
    from transformers import BartConfig, BartForConditionalGeneration
    torch.manual_seed(0); bart = Backbone('bart', BartForConditionalGeneration(BartConfig(vocab_size=80, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64, dropout=0.)).eval(), toy.tokenizer)
    tasks = make_tasks(4); prompt = new_prompt('shallow', bart, length=3)
    for es,s in zip(tasks, rank(bart, tasks, prompt)):
        for e,total in zip(es, s.sum): np.testing.assert_allclose(total, [one_pass_per_choice(bart, e.source, c, prompt)[0] for c in e.choices], atol=1e-4)
    with pytest.raises(UserError, match='has absolute ones'): decode(bart, encode(bart, make_batch([([5,1],[6,1])])), torch.tensor([[6,1]]), segment_BU=torch.tensor([[0,0]]))

def test_bf16_is_close(toy):
    low = toy.clone(); low.precision = 'bf16'; tasks = make_tasks(2)
    for x,y in zip(rank(toy, tasks), rank(low, tasks)):
        for p,q in zip(x.mean, y.mean): np.testing.assert_allclose(p, q, atol=.1)

def test_mode_and_weights_are_left_alone(toy):
    t = random_backbone(WORDS, dim=16, dropout=.5).train(); before = weight_hashes(t); tasks = make_tasks(3)
    a,b = rank(t, tasks),rank(t, tasks)
    assert t.model.training and weight_hashes(t)==before and all(np.array_equal(p,q) for x,y in zip(a,b) for p,q in zip(x.sum,y.sum))

def test_ticks_add_up(toy):
    tasks = make_tasks(); seen = []; rank(toy, tasks, token_budget=300, tick=seen.append); assert sum(seen)==sum(map(len,tasks)) and len(seen)>2

def test_refusals(toy):
    e = lambda **k: SimpleNamespace(**{**dict(id='d/validation/3', source='w1', choices=('w2','w3'), gold=0, target='w2'), **k})
    for bad,words in [(e(choices=None),'has none'), (e(gold=None),'gold=None for 2 choices'), (e(gold=2),'gold=2 for 2 choices')]:
        with pytest.raises(UserError, match=words): rank(toy, [[bad]])
    with pytest.raises(UserError, match='one prompt or one per task, got 2 prompts for 1 tasks'): rank(toy, [[e()]], new_prompt('deep', toy, n=2))

# ---- real tasks

@pytest.mark.parametrize('kind', ['t5','llama'])
def test_real_tasks_of_different_choice_counts(shared, kind):
    from promptbench.data.suite import load_suite
    suite = load_suite(shared/'real'); picked = {}
    for t in suite.tasks():
        if t.dataset in {p.dataset for p in picked.values()}: continue
        es = t.examples('validation', 4) or []
        if es and all(e.choices for e in es) and max(len(e.source) for e in es)<1500: picked.setdefault(len(es[0].choices), t)
    extra = [t for t in suite.tasks() if t.dataset not in {p.dataset for p in picked.values()}]
    tasks = list(picked.values())+extra; tasks = [t for t in tasks if (es := t.examples('validation', 3)) and all(e.choices for e in es)][:5]
    examples = [t.examples('validation', 3) for t in tasks]; counts = {len(e.choices) for es in examples for e in es}
    assert len({t.dataset for t in tasks})>=4 and len(tasks)==5 and len(counts)>=3, (counts, [t.dataset for t in tasks])
    words = sorted({w for es in examples for e in es for x in (e.source,*e.choices) for w in x.split()}); t = random_backbone(words, dim=16, layers=(2,2), heads=2, kind=kind)
    for es,s in zip(examples, rank(t, examples)):
        for e,total,mean in zip(es, s.sum, s.mean):
            slow = [one_pass_per_choice(t, e.source, c, None) for c in e.choices]
            np.testing.assert_allclose(total, [x for x,_ in slow], atol=1e-4, rtol=1e-5); assert total.argmax()==np.argmax([x for x,_ in slow]) and mean.argmax()==np.argmax([x/n for x,n in slow])

# ---- nothing twice, and no more memory than there is

def watch(backbone):
    "How many rows and positions the encoder reads, batch by batch"
    seen = []; handle = backbone.model.get_encoder().register_forward_pre_hook(lambda m, a, kw: seen.append(tuple(kw['inputs_embeds'].shape[:2])), with_kwargs=True); return seen,handle

def test_a_source_is_read_once(toy):
    e = lambda *c: SimpleNamespace(id='x', source='w1 w2 w3', choices=c, gold=0); tasks = [[e('w4','w5'),e('w5','w6 w7','w4'),e('w4','w4')],[e('w5')]]; bank = new_prompt('deep', toy, length=2, n=2)
    for prompt,rows in ((None,1),(bank,2)):
        seen,handle = watch(toy); a,b = rank(toy, tasks, prompt); handle.remove()
        assert sum(n for n,_ in seen)==rows and a.sum[0][0]==a.sum[1][2]==a.sum[2][0]==a.sum[2][1] and a.sum[0][1]==a.sum[1][0] and (a.sum[0][1]==b.sum[0][0])==(prompt is None)
        assert a.sum[1][1]==pytest.approx(one_pass_per_choice(toy, 'w1 w2 w3', 'w6 w7', prompt and bank.select([0]))[0], abs=1e-4)

@pytest.mark.parametrize('row', [1,10**6])
def test_out_of_memory_shrinks_the_batches_and_nothing_else(toy, monkeypatch, row):
    import promptbench.measure.rank as r
    monkeypatch.setattr(r, 'ROW', row); tasks = make_tasks(6)[:2]; want = rank(toy, tasks, token_budget=800); real,sizes,ticks = r.score_units,[],[]
    def small(backbone, work, units, prompt=None):
        sizes.append(len(units))
        if len(units)>3: raise RuntimeError('CUDA error: out of memory')
        return real(backbone, work, units, prompt)
    monkeypatch.setattr(r, 'score_units', small)
    with pytest.warns(UserWarning, match='memory ran out with 800 tokens at a time') as said: got = rank(toy, tasks, token_budget=800, tick=ticks.append)
    assert len(said)==1 and max(sizes)>3 and sum(ticks)==sum(map(len, tasks))
    for x,y in zip(want, got):
        for p,q in zip(x.sum, y.sum): np.testing.assert_allclose(p, q, atol=1e-5)
    def never(*_, **k): raise MemoryError
    monkeypatch.setattr(r, 'score_units', never); tasks = tasks[-1:]
    with pytest.raises(UserError, match='memory must hold'): rank(toy, tasks, token_budget=2)
    assert not toy.model.training

def test_work_is_the_same_in_any_order(toy):
    tasks = make_tasks(7); flipped = [list(reversed(es)) for es in tasks]
    for a,b in zip(rank(toy, tasks), rank(toy, flipped)):
        for p,q in zip(a.sum, reversed(b.sum)): np.testing.assert_allclose(p, q, atol=1e-5)

def test_empty_targets_and_sources(toy):
    e = SimpleNamespace(id='x', source='', choices=('','w1'), gold=0); s = rank(toy, [[e]])[0].sum[0]
    np.testing.assert_allclose(s, [one_pass_per_choice(toy, '', c, None)[0] for c in e.choices], atol=1e-4)
    t = random_backbone(WORDS, kind='llama', dim=16); s = rank(t, [[e]])[0].sum[0]
    np.testing.assert_allclose(s, [one_pass_per_choice(t, '', c, None)[0] for c in e.choices], atol=1e-4)
