"The live panels without a browser: what they show is what the functions below them return; and those functions against computations by hand"
import copy, json, math, time
import numpy as np, pandas as pd, pytest, torch
import synth
pytest.importorskip('ipywidgets', reason='ipywidgets is not installed'); pytest.importorskip('anywidget', reason='anywidget is not installed')
import ipywidgets as W
from promptbench.lab import diagnosis as D; from promptbench.prompt import neighbours as I
from promptbench.model.backbone import load_backbone, random_backbone
from promptbench.model.batch import make_batch
from promptbench.stats.bootstrap import bootstrap_arg, replicate
from promptbench.prompt.checkpoint import load_checkpoint
from promptbench.lab.comparison import Comparison, disagreements, paired
from promptbench.base.core import UserError
from promptbench.lab.explorer import Explorer, Texts, explored, wrong
from promptbench.prompt.forward import forward
from promptbench.prompt.inits import new_prompt
from promptbench.lab.inspector import Inspector
from promptbench.lab.monitor import MonitoredRun, Monitor, Reading, held_out, pretraining_run, tuning_run
from promptbench.lab.panels import Panel, Plot, Raw, table_html
from promptbench.lab.playground import Playground, answers, record_of, seen
from promptbench.train.pretrain import PretrainConfig, pretrain
from promptbench.prompt.bank import DeepPrompt, ShallowPrompt
from promptbench.measure.rank import rank
from promptbench.stats.store import append
from promptbench.data.suite import load_suite
from promptbench.train.tune import TuneConfig, tune

@pytest.fixture(scope='module')
def suite(): return load_suite('microworld')
@pytest.fixture(scope='module')
def tiny(): return load_backbone('tiny')

# --- the frame -------------------------------------------------------------------------------------------------------
def test_an_exception_is_shown_and_the_panel_goes_on():
    n = W.IntText(1); seen_ = []; p = Panel('Halves <b>', n); p.on(n, lambda: seen_.append(1/n.value))
    n.value = 0; assert 'ZeroDivisionError' in p.problem and 'Where it happened' in p.problem and 'role="alert"' in p.problem
    n.value = 4; assert p.problem=='' and seen_==[.25] and 'Halves &lt;b&gt;' in p.children[0].value

def test_a_mistake_of_the_user_has_no_traceback():
    p = Panel('x', n:=W.IntText(0)); p.on(n, lambda: (_ for _ in ()).throw(UserError('choose <another>'))); n.value = 1
    assert 'choose &lt;another&gt;' in p.problem and 'Where it happened' not in p.problem and 'UserError' not in p.problem

def test_an_inner_exception_outlives_later_successes():
    a,b,c = W.IntText(0),W.IntText(0),W.IntText(0); p = Panel('x', a, b, c); p.on(b, lambda: 1/0); p.on(c, lambda: None); p.on(a, lambda: (setattr(b, 'value', a.value), setattr(c, 'value', a.value)))
    a.value = 1; assert 'ZeroDivisionError' in p.problem; c.value = 2; assert p.problem==''

def test_a_figure_is_small_plain_state():
    import plotly.graph_objects as go
    p = Plot(go.Figure(go.Scatter(x=[1], y=[2]), dict(title='A finding'))); state = p.get_state(); assert state['figure']['caption']=='A finding'
    assert len(json.dumps({k:v for k,v in state.items() if isinstance(v, (str,dict,int,float,bool))}))<20_000       # the library of 4.8 MB is not part of it
    sent = []; p.send = lambda content, buffers=None: sent.append((content, buffers)); p._serve(p, dict(want='plotly'), []); assert sent[0][0]==dict(plotly=True) and len(sent[0][1][0])>1_000_000
    p._serve(p, dict(want='anything else'), []); assert len(sent)==1

def test_texts_cannot_become_html(suite, tiny):
    evil = '<script>alert(1)</script>'; assert evil not in table_html(['a'], [(evil,)]) and evil in table_html(['a'], [(Raw(evil),)])
    p = Playground(tiny, suite); p.jinja.value = evil+'{{premise}} ||| no'; p.choices.value = 'no ||| '+evil; assert all(evil not in w.value for w in (p.fields,p.shown,p.ranked,p._error)) and '&lt;script' in p.shown.value

# --- playground ------------------------------------------------------------------------------------------------------
def test_playground_shows_what_rank_says(suite, tiny):
    task = suite.task('cause/number'); e = task.examples('validation', 2)[1]; prompt = new_prompt('deep', tiny, length=3); s = seen(tiny, record_of(task, 1), task.wording.jinja, task.wording.answer_choices)
    assert (s.source,s.target,s.choices,s.gold,s.source_tokens,s.choice_tokens)==(e.source, e.target, e.choices, e.gold, len(tiny.sources([e.source])[0]), [len(i) for i in tiny.targets(e.choices)])
    for rule in ('mean','sum'):
        r, = rank(tiny, [[e]], prompt); got = {d['choice']:d for d in answers(tiny, s, prompt, rule=rule)}; by = getattr(r, rule)[0]
        for c,total,mean,p in zip(e.choices, r.sum[0], r.mean[0], np.exp(by)/np.exp(by).sum()): assert (got[c]['logp'],got[c]['per_token'])==(pytest.approx(total),pytest.approx(mean)) and got[c]['probability']==pytest.approx(p)

def test_playground_is_instant(suite, tiny):
    p = Playground(tiny, suite); took = []
    for i in range(8): p.index.value = i; p.jinja.value += '.'; took.append(p.seconds)
    assert p.problem=='' and min(took)<.3, took

def test_playground_controls(suite, tiny):
    p = Playground(tiny, suite, prompts=dict(mine=new_prompt('shallow', tiny, length=3))); first = p.answers; p.prompt.value = 'mine'; assert p.problem=='' and p.answers!=first
    p.limit.value = 4; assert p.seen.lost_tokens>0 and p.seen.kept+p.seen.cut==p.seen.source and 'pb-cut' in p.shown.value
    p.jinja.value = '{{no_such}} ||| x'; assert 'the record has' in p.problem and p.seen is None; p.reset.click(); assert p.problem==''
    p.choices.value = ''; assert p.problem=='' and p.answers is None and p.ranked.value==''
    p.jinja.value = '{{premise}} ||| '; assert 'would be skipped' in p.shown.value
    p.dataset.value = 'sense'; assert p.problem=='' and p.task.dataset=='sense' and p.seen.source==p.task.examples('validation', 1+p.index.value)[p.index.value].source

# --- looking into prompts --------------------------------------------------------------------------------------------
def by_hand(slot, hidden_TD, keys_PHK=None, heads=2, K=4, bidirectional=True):
    "Attention weights [H,T,P+T] from the layer's own matrices, in plain numpy"
    w = lambda n: getattr(slot, n).weight.detach().numpy(); T = len(hidden_TD); q,k = (hidden_TD@w(n).T for n in ('q','k')); q,k = (x.reshape(T, heads, K) for x in (q,k)); out = []
    bias = slot.compute_bias(T, T)[0].detach().numpy()
    for h in range(heads):
        own = q[:,h]@k[:,h].T+bias[h]; s = own if keys_PHK is None else np.concatenate([q[:,h]@keys_PHK[:,h].T, own], 1); e = np.exp(s-s.max(1, keepdims=True)); out.append(e/e.sum(1, keepdims=True))
    return np.array(out)

def layer_input(backbone, x_TD):
    "What the first encoder layer's attention gets: T5's root-mean-square norm"
    n = backbone.model.get_encoder().block[0].layer[0].layer_norm; return x_TD/np.sqrt((x_TD**2).mean(1, keepdims=True)+n.variance_epsilon)*n.weight.detach().numpy()

class Ex:
    def __init__(self, source, target='w1'): self.source,self.target,self.choices,self.gold,self.id = source,target,None,None,source

def test_attention_on_a_deep_prompt_by_hand():
    b = random_backbone(dim=8, layers=(1,1), heads=2, head_dim=4); p = new_prompt('deep', b, length=3); slot = b.slots[0]; ids = b.sources(['w3 w9 w5'])[0]
    hidden = layer_input(b, b.model.shared.weight.detach().numpy()[ids]); keys = p.table[0].detach().view(3, 3, 2, 2, 4)[:,0,0].numpy(); weights = by_hand(slot, hidden, keys)
    got = I.attention_mass(b, [Ex('w3 w9 w5')], p); assert np.allclose(got[got.slot=='encoder 0'].mass, weights[:,:,:3].sum(2).mean(1), atol=1e-5); assert list(dict.fromkeys(got.slot))==['encoder 0','decoder 0','cross 0']

def test_attention_on_a_shallow_prompt_by_hand():
    b = random_backbone(dim=8, layers=(1,1), heads=2, head_dim=4, seed=3); p = new_prompt('shallow', b, length=2, n=2); short,long = 'w3 w9','w5 w1 w8 w2'; shares = []
    for s in (short, long): # of unequal length: padding must not count
        x = np.concatenate([p.table[1].detach().numpy(), b.model.shared.weight.detach().numpy()[b.sources([s])[0]]]); shares.append(by_hand(b.slots[0], layer_input(b, x))[:,2:,:2].sum(2))
    got = I.attention_mass(b, [Ex(short), Ex(long)], p, index=1); assert np.allclose(got[got.slot=='encoder 0'].mass, np.concatenate(shares, 1).mean(1), atol=1e-5) and 'decoder 0' not in set(got.slot)

@pytest.mark.parametrize('kind', ['llama','gpt2'])
def test_attention_of_decoder_only_models(kind):
    b = random_backbone(kind=kind, dim=16, layers=(2,2), heads=2); es = [Ex('w3 w9'), Ex('w5 w1 w8')]
    for k in ('shallow','deep'):
        p = new_prompt(k, b, length=2); batch = make_batch(b.pairs(es)); before = forward(b, batch, p); m = I.attention_mass(b, es, p); assert len(m)==4 and m.mass.between(0, 1).all() and torch.equal(before, forward(b, batch, p))
    zero = DeepPrompt(torch.zeros_like(p.table)); big = DeepPrompt(torch.full_like(p.table, -30.)); assert not np.allclose(I.attention_mass(b, es, zero).mass, I.attention_mass(b, es, big).mass)

def test_nearest_words_by_hand(tiny):
    p = new_prompt('shallow', tiny, length=3, init='normal'); near = I.nearest_words(tiny, p, k=2); table = tiny.model.shared.weight.detach().numpy(); special = set(tiny.tokenizer.all_special_ids)
    for i,v in enumerate(p.table[0].detach().numpy()):
        far = sorted((float(np.linalg.norm(v-table[j])), j) for j in range(len(tiny.tokenizer)) if j not in special)[:2]; cos = sorted((-float(v@table[j]/np.linalg.norm(v)/np.linalg.norm(table[j])), j) for j in range(len(tiny.tokenizer)) if j not in special)[:2]
        assert [x for _,x in near.euclidean[i]]==pytest.approx([d for d,_ in far], rel=1e-4) and [x for _,x in near.cosine[i]]==pytest.approx([-c for c,_ in cos], rel=1e-4)
        assert [w for w,_ in near.cosine[i]]==[tiny.tokenizer.convert_ids_to_tokens(j).lstrip('▁') for _,j in cos] and near.norm[i]==pytest.approx(np.linalg.norm(v), rel=1e-5)

def test_map_keeps_distances_of_flat_prompts():
    g = torch.Generator().manual_seed(0); flat = torch.randn(6, 2, generator=g)@torch.randn(2, 12, generator=g); at,share = I.prompt_map([ShallowPrompt(flat[:4].view(4,3,4)), ShallowPrompt(flat[4:].view(2,3,4))])
    assert np.allclose(np.linalg.norm(at[0]-at[5]), (flat[0]-flat[5]).norm(), rtol=1e-4) and share.sum()==pytest.approx(1, abs=1e-6) and share[0]>=share[1]
    with pytest.raises(UserError, match='one kind and length'): I.prompt_map([ShallowPrompt(torch.ones(1,2,4)), ShallowPrompt(torch.ones(1,3,4))])
    assert np.isfinite(I.prompt_map([ShallowPrompt(torch.ones(1,2,4))])[0]).all()

def test_inspector_follows_its_controls(suite, tiny):
    tasks = suite.tasks('eval', limit=1)[:3]; bank = new_prompt('shallow', tiny, length=2, n=3); p = Inspector(tiny, dict(bank=bank, one=new_prompt('deep', tiny, length=2)), tasks); p.task.value = 1; p.n.value = 2; assert p.problem==''
    pd.testing.assert_frame_equal(p.shares, I.attention_mass(tiny, tasks[1].examples('validation', 2), bank, index=1)); p.prompt.value = 'one'; assert p.problem=='' and p.index==0 and p.map.figure=={}      # a single prompt has no map

# --- the doctor: every fault is a real one ---------------------------------------------------------------------------
def kinds(*a, **k): return [d['kind'] for d in D.diagnose(*a, **k)]
def tuned(tiny, suite, steps=22, prompt=None, examples=None, **how): return list(D.watch(tune(tiny, prompt if prompt is not None else new_prompt('deep', tiny, length=4), [examples or suite.task('entail/does_it_mean').shots(4, 0)], TuneConfig(shots=4, steps=steps, **how))))

@pytest.mark.outcome
def test_a_healthy_run_triggers_nothing(suite, tiny):
    es = suite.task('entail/does_it_mean').shots(4, 0); p = new_prompt('deep', tiny, length=4); rows = tuned(tiny, suite, lr=.03)
    for n in range(1, len(rows)+1): assert kinds(rows[:n], steps=22, guess=D.guess_loss(tiny, es), asked=D.probe(tiny, p, es))==[], n
    assert 'Nothing speaks against it' in D.doctor_line([]) and D.diagnose([])==[]

@pytest.mark.outcome
def test_a_far_too_small_learning_rate(suite, tiny):
    rows = tuned(tiny, suite, lr=1e-9); assert kinds(rows, steps=100)==['too slow'] and kinds([{k:v for k,v in r.items() if k!='movement'} for r in rows], lr=1e-9)==['too slow']
    said = D.doctor_line(D.diagnose(rows, steps=100)); assert 'learning rate is far too small' in said and 'near 1e-02' in said; assert kinds(rows[:10], steps=100)==[]      # too early to say

def frozen_pretraining(freeze, make=None):
    b = random_backbone([f'w{i}' for i in range(20)], dim=8, layers=(1,1)); s = load_suite('microworld'); p = new_prompt('shallow', b, length=3); p = make(p.table) if make else p; p.requires_grad_(not freeze)
    return b,p,list(D.watch(pretrain(b, p, s.tasks('train', limit=1)[:3], PretrainConfig(examples=24, batch_size=8, length=3, dropout=0.)), p))

@pytest.mark.outcome
def test_a_frozen_prompt_hides_behind_a_transformer_that_learns():
    b,p,rows = frozen_pretraining(True); assert rows[-1]['grad_norm']>0 and rows[-1]['movement']==0 and kinds(rows)==['frozen'] and 'requires_grad' in D.doctor_line(D.diagnose(rows))
    b,p,rows = frozen_pretraining(False); assert rows[-1]['movement']>0 and rows[-1]['prompt_grad']>0 and kinds(rows)==[]

@pytest.mark.outcome
def test_a_masked_prompt_and_a_cut_one(suite, tiny):
    def hide(module, args, kw): m = kw['attention_mask'].clone(); m[:,:4] = 0; return args,kw|dict(attention_mask=m)
    p = new_prompt('shallow', tiny, length=4); es = suite.task('entail/does_it_mean').shots(4, 0); hooks = [m.register_forward_pre_hook(hide, with_kwargs=True) for m in (tiny.model.get_encoder(), tiny.model)]
    try: rows = tuned(tiny, suite, steps=3, prompt=p); asked = D.probe(tiny, p, es)
    finally: [h.remove() for h in hooks]
    assert kinds(rows)==['no gradient'] and kinds(rows, asked=asked)==['masked'] and 'masked out' in D.doctor_line(D.diagnose(rows, asked=asked))
    class Cut(ShallowPrompt):
        def rows(self, index_B): return super().rows(index_B).detach()
    asked = D.probe(tiny, Cut(p.table), es); assert asked['effect']>0 and kinds([dict(loss=1., prompt_grad=0., movement=0.)]*3, asked=asked)==['cut']

@pytest.mark.outcome
def test_a_cut_prompt_in_pretraining_and_a_loop_that_clears_its_gradients():
    class Cut(ShallowPrompt):
        def rows(self, index_B): return super().rows(index_B).detach()
    b,p,rows = frozen_pretraining(False, Cut); assert kinds(rows)==['no gradient'] and rows[-1]['grad_norm']>0 and 'prompt_grad' not in rows[-1] and kinds(rows, asked=D.probe(b, p, load_suite('microworld').task('entail/claim').shots(2, 0)))==['cut']
    def clearing():
        for i in range(3): p.table.data.add_(.1); p.zero_grad(); yield dict(step=i, loss=1., grad_norm=1.)
    p = new_prompt('shallow', b, length=3); assert kinds(list(D.watch(clearing(), p)), asked=D.probe(b, p, load_suite('microworld').task('entail/claim').shots(2, 0)))==[]

def test_a_prompt_the_optimiser_does_not_hold(suite, tiny):
    p = new_prompt('shallow', tiny, length=2); es = suite.task('entail/does_it_mean').shots(2, 0)
    def rows():
        for i in range(3): p.zero_grad(); loss = forward(tiny, make_batch(tiny.pairs(es)), p).logsumexp(-1).mean(); loss.backward(); yield dict(step=i, loss=loss.item())
    assert kinds(list(D.watch(rows(), p)))==['not stepped']

def starts(tiny, n=5): return DeepPrompt(torch.cat([new_prompt('deep', tiny, length=4, seed=s).table for s in range(n)]))
def median(rows): return [r|dict(loss=float(np.median(r['losses']))) for r in rows]

def test_the_verdict_at_chance_on_constructed_rows():
    guess = math.log(2)/2; run = lambda shape, n=40: kinds([dict(loss=guess*shape(i)) for i in range(n)], guess=guess)
    for flat in (.95, 1., 1.3): assert run(lambda i: flat)==run(lambda i: flat+20*math.exp(-i/3))==['at chance'], flat
    for other in (.9, 1.4, .1, 20.): assert run(lambda i: other)==[], other
    assert run(lambda i: 1., n=19)==[]                                                                  # too early to say
    assert run(lambda i: 1.3-.01*i)==['at chance'] and run(lambda i: 1.8-.02*i)==[]                     # the second passes by
    assert kinds([dict(loss=guess)]*40)==[]                                                             # answers are free: no guessing

@pytest.mark.outcome
def test_a_source_that_does_not_hold_the_answer_stays_at_chance(suite, tiny):
    "Where every source is the same nothing beats guessing, whatever the roundings; five starts, since a single run may jump while it is judged"
    from dataclasses import replace
    es = suite.task('entail/does_it_mean').shots(8, 0, balanced=True); blind = [replace(e, source='Yes or no?') for e in es]; guess = D.guess_loss(tiny, es); assert guess==pytest.approx(math.log(2)/2)
    rows = list(D.watch(tune(tiny, starts(tiny), [blind]*5, TuneConfig(steps=100, lr=.03)))); assert min(min(r['losses']) for r in rows)>.999*guess
    found = D.diagnose(median(rows), guess=guess); assert [d['kind'] for d in found]==['at chance'] and 'guessing' in D.doctor_line(found)

@pytest.mark.outcome
def test_a_start_of_another_size(suite, tiny):
    p = ShallowPrompt(new_prompt('shallow', tiny, length=4, init='normal').table*300); rows = tuned(tiny, suite, prompt=p, lr=.03); asked = D.probe(tiny, p, suite.task('entail/does_it_mean').shots(4, 0))
    assert 'off scale' in kinds(rows, steps=22, asked=asked)

# --- monitor ---------------------------------------------------------------------------------------------------------
def test_stop_leaves_a_checkpoint_and_start_goes_on(suite, tiny, tmp_path):
    run = lambda: tuning_run(tiny, new_prompt('deep', tiny, length=3), suite.tasks('eval')[:2], TuneConfig(shots=2, steps=12, lr=.03), suite=suite, n=3); whole = Monitor(run(), tmp_path/'a', every=4, measure_every=2); whole.start.click(); whole.reading.wait(); assert whole.reading.state=='done' and whole.problem==''
    m = Monitor(run(), tmp_path/'b', every=4, measure_every=2); m.start.click(); m.stop.click(); m.reading.wait(); n = len(m.rows); assert m.reading.state=='stopped' and n%4==0 and 0<n<12 and torch.equal(load_checkpoint(tmp_path/'b'/'result')[1].table, m.prompt.table) and not m.start.disabled and m.stop.disabled
    seen_ = Monitor(run(), tmp_path/'b', every=4, measure_every=2); assert len(seen_.rows)==n and seen_.plot.figure['data'] and seen_.start.description=='Go on'                     # in another session: shown before anything runs
    for again in (m, seen_):
        again.start.click(); again.reading.wait(); assert again.problem=='' and len(again.rows)==12 and torch.equal(again.prompt.table, whole.prompt.table) and 'After 12 of 12' in again.plot.figure['caption']
        assert again.measured==whole.measured and [r['movement'] for r in again.rows]==[r['movement'] for r in whole.rows]                                                          # nothing is measured with a prompt that is further already

def test_a_run_that_fails_is_shown_and_can_start_again(tmp_path):
    calls = []
    def make(folder, every):
        calls.append(1)
        if len(calls)==1: raise UserError('the data are gone; put them back')
        return iter([dict(step=i, loss=1., grad_norm=1.) for i in range(3)]),random_backbone(),None
    m = Monitor(MonitoredRun('test', make, 3, None, []), tmp_path); m.start.click(); m.reading.wait(); assert m.reading.state=='failed' and 'the data are gone' in m.problem
    m.start.click(); m.reading.wait(); assert (m.reading.state,m.problem,len(m.rows))==('done','',3)

def test_a_pause_holds_and_is_not_counted():
    rows = []; reading = Reading(lambda: (time.sleep(.002) or i for i in range(10**6)), rows.append, lambda j: None).start(); time.sleep(.05); reading.pause(); time.sleep(.05); n,active = len(rows),reading.active; time.sleep(.3); assert len(rows)<=n+1 and reading.active<active+.2
    reading.resume(); reading.stop(); reading.wait(5); assert reading.state=='stopped' and not reading.thread.is_alive()

def test_pretraining_can_be_watched(tmp_path):
    s = load_suite('microworld'); b = load_backbone('tiny'); before = {n:t.clone() for n,t in b.model.state_dict().items()}; p = new_prompt('shallow', b, length=3)
    m = Monitor(pretraining_run(b, p, s.tasks('train', limit=1)[:3], PretrainConfig(examples=24, batch_size=8, length=3, dropout=0.), suite=s, held=s.tasks('eval')[:2], n=4), tmp_path, every=1); m.start.click(); m.reading.wait(); assert (m.reading.state,m.problem,len(m.rows))==('done','',3)
    assert m.measured[-1]['lo']<=m.measured[-1]['arg']<=m.measured[-1]['hi'] and m.rows[-1]['movement']>0 and all(torch.equal(before[n], t) for n,t in b.model.state_dict().items())       # the user's model is left alone
    again,_,card = load_checkpoint(tmp_path/'result'); assert card['updates']==3 and not torch.equal(again.model.shared.weight, b.model.shared.weight)

# --- results ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def made(): p = synth.predictions(seeds=(0,1), n=20, datasets=synth.DATASETS[:3]); return synth.rows(p),p

def test_explorer_reads_a_store(made, tmp_path):
    rows,ps = made; append(tmp_path/'store', rows, ps); p = Explorer(tmp_path/'store'); assert p.problem=='' and len(p.d)==len(rows)
    p.x.value,p.y.value,p.dataset.value = 'template','gain over the commonest answer',('bank',); d = explored(p.rows, x='template', y='gain over the commonest answer', dataset=['bank']); pd.testing.assert_frame_equal(p.d, d); assert np.allclose(d.y, 100*(d.value/d.majority-1))
    p.point.value = int(d.index[3]); assert p.problem=='' and p.one.figure['caption'].startswith('bank') and p.words.value.count('<tr>')==1+len(wrong(ps, d.iloc[3]))
    append(tmp_path/'rows', rows); q = Explorer(tmp_path/'rows'); q.point.value = 0; assert q.problem=='' and 'Without predictions' in q.words.value

def test_wrong_answers_are_the_wrong_ones(made):
    rows,ps = made; r = rows.iloc[7]; w = wrong(ps, r, n=10**6); mine = ps[(ps.run==r.run)&(ps.template==r.template)&(ps.seed==r.seed)]; assert set(w.instance)==set(mine.instance[~mine.correct]) and len(w)==round((1-r.value)*r.n)
    first = mine.set_index('instance').loc[w.instance[0]]; assert w.behind[0]==pytest.approx(max(s[p]-s[g] for s,p,g in zip(mine.scores_mean, mine.pred, mine.gold))) and w.scores[0]==[round(float(s), 2) for s in first.scores_mean]

def test_words_are_shown_only_for_the_same_draw(suite, tiny):
    from promptbench.measure.evaluate import evaluate
    rows,ps = evaluate(tiny, [suite.task('entail/does_it_mean')], suite=suite, n=6); w = wrong(ps, rows.iloc[0], texts=Texts(suite)); e = {suite.draw+x.id:x for x in suite.task('entail/does_it_mean').examples('validation', 6)}
    assert len(w) and all(r.source==e[r.instance].source and r.gold==e[r.instance].choices[e[r.instance].gold] for r in w.itertuples()); other = load_suite('microworld', seed=5); assert set(wrong(ps, rows.iloc[0], texts=Texts(other)).source)=={''}

def test_paired_differences(made):
    rows,ps = made; a,b = [dict(suite='microworld', backbone='tiny', method=m, prompt='deep', shots=16) for m in ('T+P','none')]; t = paired(ps, a, b, samples=200).set_index('dataset'); whole = bootstrap_arg(ps, ('T+P','deep',16), ('none','deep',16), by='datasets', n=200)
    assert t.estimate['ARG']==pytest.approx(whole['estimate']) and (t.lo['ARG'],t.hi['ARG'])==pytest.approx((whole['lo'],whole['hi'])) and (t.lo<=t.estimate).all() and (t.estimate<=t.hi).all()
    acc = lambda m: ps[(ps.method==m)&(ps.prompt=='deep')&(ps.shots==16)&(ps.dataset=='bank')].groupby(['seed','template']).correct.mean().mean(); assert t.estimate['bank']==pytest.approx(100*(acc('T+P')-acc('none'))/.5)
    with pytest.raises(UserError, match='share no seed'): paired(pd.concat([ps[(ps.method=='T+P')&(ps.seed==0)], ps[(ps.method=='none')&(ps.seed==1)]]), a, b)

def test_disagreements_are_where_one_is_right(made):
    rows,ps = made; a,b = [dict(suite='microworld', backbone='tiny', method=m, prompt='deep', shots=16) for m in ('T+P','none')]; d = disagreements(ps, a, b); key = ['seed','dataset','template','instance']
    x,y = (ps[(ps.method==m)&(ps.prompt=='deep')&(ps.shots==16)].set_index(key).correct for m in ('T+P','none')); assert set(map(tuple, d[key].values))==set((x!=y).loc[lambda s: s].index) and d.sure.is_monotonic_decreasing and (d.sure>=0).all()
    for r in d[:20].itertuples(): assert x[r.seed,r.dataset,r.template,r.instance]==(r.right=='first')

def test_comparison_goes_on_after_an_error(made):
    c = Comparison(made[1], samples=50); c.b.value = c.a.value; assert 'two different runs' in c.problem and c.plot.figure=={}; c.b.value = 3; assert c.problem=='' and c.plot.figure['data']
    with pytest.raises(UserError, match='at least two'): Comparison(made[1][made[1].run==made[1].run.iloc[0]])

def test_one_run_alone_has_an_interval(made):
    p = made[1]; p = p[p.run==p.run.iloc[0]]; assert replicate(p, n=20, by='datasets').estimate_V.shape==(1,)       # pandas turns the weights of a single group on their side
