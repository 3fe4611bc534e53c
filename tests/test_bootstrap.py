"Resampling: against the obvious loop, pairing, BCa, coverage, the wider bootstrap, the paper's procedure, Holm, refusals"
import importlib.util, itertools, sys, time
from pathlib import Path
import numpy as np, pandas as pd, pytest
import synth
from promptbench.base.core import UserError
from promptbench.stats import results as R; from promptbench.stats import metrics as M; from promptbench.stats import bootstrap as B
from promptbench.stats.intervals import holm
from promptbench.stats.resample import _counts
from promptbench.stats.wu2022 import wu2022
from promptbench.stats.paper import released_rows

BENCH = Path(__file__).resolve().parent/'bench'
def bench(name):
    "A script of tests/bench as a module, under a name that hides no package (there is one called coverage)"
    sys.path.insert(0, str(BENCH))
    try: spec = importlib.util.spec_from_file_location('bench_'+name, BENCH/f'{name}.py'); m = importlib.util.module_from_spec(spec); spec.loader.exec_module(m)
    finally: sys.path[:] = [p for p in sys.path if p!=str(BENCH)]
    return m
coverage_study = bench('interval_coverage')

CELL_A,CELL_B = ('T+P','shallow',16),('T-only','shallow',16)
TWO = {CELL_A:.4, CELL_B:.3}
SMALL = [('nli','a',2,2), ('nli','b',3,3), ('completion','c',4,2)]

@pytest.fixture(scope='module')
def small(): return synth.predictions(seeds=(0,1), n=40, skill=TWO|{('T-only','none',0):.4}, datasets=SMALL)

def says(e, *parts): assert all(p in str(e.value) for p in parts), str(e.value)
def width(p, *cells, **k): return (lambda e: e['hi']-e['lo'])(B.bootstrap_arg(p, *(cells or (CELL_A,)), n=1000, **k))
def difference(r): return r.draws_Vn[B._of(r, CELL_A)].mean(0)-r.draws_Vn[B._of(r, CELL_B)].mean(0)

# --- the same numbers as the obvious way -----------------------------------------------------------------------------
def slow_bootstrap(preds, cells, n, gen, templates=False):
    "The obvious loop: draw ids (and templates) per dataset and seed, look every answer up, average"
    table = {k:dict(zip(g.instance, g.correct)) for k,g in preds.groupby(['method','seed','dataset','template'])}
    names,seeds = sorted(preds.dataset.unique()),sorted(preds.seed.unique()); out = []
    chance = preds.assign(c=1/preds.scores_sum.map(len)).groupby('dataset').c.first()
    ids = {(s,d):sorted(preds[(preds.seed==s)&(preds.dataset==d)].instance.unique()) for s in seeds for d in names}; ts = {d:sorted(preds[preds.dataset==d].template.unique()) for d in names}
    for _ in range(n):
        draw = {k:gen.choice(v, len(v)) for k,v in ids.items()}; pick = {d:list(gen.choice(t, len(t))) if templates else t for d,t in ts.items()}
        arg = lambda m: np.mean([np.mean([np.mean([100*(np.mean([table[m,s,d,t][i] for i in draw[s,d]])-chance[d])/chance[d] for t in pick[d]]) for d in names]) for s in seeds])
        out.append(arg(cells[0])-arg(cells[1]))
    return np.array(out)

@pytest.mark.parametrize('templates', [False,True])
def test_agrees_with_the_obvious_loop(small, templates):
    part = small[small.shots==16]; loop = slow_bootstrap(part, ('T+P','T-only'), 250, np.random.default_rng(0), templates)
    fast = difference(B.replicate(part, n=4000, resample=('instances','templates') if templates else 'instances'))
    assert fast.std()==pytest.approx(loop.std()*np.sqrt(40/39), rel=.15); assert fast.mean()==pytest.approx(loop.mean(), abs=4*loop.std()/np.sqrt(250))

def test_the_spread_is_the_closed_form():
    "Without resampling: the variance of a sum of means is the sum of squared deviations over n(n-1), not n squared"
    r = B.replicate(synth.predictions(seeds=(0,1), n=10, skill=TWO, datasets=SMALL), n=20000); w = np.zeros(len(r.views)); w[B._of(r, CELL_A)] = .5; w[B._of(r, CELL_B)] = -.5
    se = np.sqrt(sum(((s@w[i])**2).sum()*len(s)/(len(s)-1) for i,s in r.share))
    assert difference(r).std()==pytest.approx(se, rel=.02)

def test_estimate_is_arg_and_seeds_are_averaged(small):
    rows = synth.rows(small); a = R.pick(rows, method='T+P'); e = B.bootstrap_arg(small, CELL_A, n=200)
    assert e['estimate']==pytest.approx(np.mean([M.arg(a[a.seed==s], baseline='chance') for s in (0,1)])); assert e['seeds']==2
    assert e['n_instances']==2*40*3      # other instances per seed
    shared = synth.predictions(seeds=(0,1), n=40, skill=TWO, datasets=SMALL, shared=True); assert B.bootstrap_arg(shared, CELL_A, n=50)['n_instances']==40*3
    for by in M.BY: assert B.bootstrap_arg(small, CELL_A, by=by, n=5)['estimate']==pytest.approx(M.arg_table(a, baseline='chance', by=by).arg[0])
    e = B.bootstrap_arg(small, CELL_A, n=200, baseline=R.pick(rows, method='T-only', shots=16)); assert e['estimate']==pytest.approx(M.arg_table(a, baseline=R.pick(rows, method='T-only', shots=16)).arg[0])

def test_templates_that_skip_instances():
    p = synth.predictions(seeds=(0,), n=60, skill=TWO, datasets=SMALL); half = p[~((p.template=='a_a')&(p.instance.str.split('/').str[-1].astype(int)>=25))]
    e = B.estimate(B.replicate(half, n=2000), CELL_A)
    assert e['estimate']==pytest.approx(M.arg(R.pick(synth.rows(half), method='T+P'), baseline='chance')); assert e['n_instances']==180
    assert width(p)<e['hi']-e['lo']

# --- order, names, categories ----------------------------------------------------------------------------------------
def test_row_order_and_dtypes_never_matter(small):
    cats = small.astype({c:'category' for c in ('suite','backbone','method','prompt','cluster','dataset','template','instance','run')})
    for resample in (('instances',), ('instances','templates','seeds')):
        first = B.bootstrap_arg(small, CELL_A, CELL_B, n=300, resample=resample)
        for other in (small.sample(frac=1, random_state=9), small[small.columns[::-1]], cats.sample(frac=1, random_state=1)): assert B.bootstrap_arg(other, CELL_A, CELL_B, n=300, resample=resample)==first
    assert B.bootstrap_arg(small, CELL_A, CELL_B, n=300, seed=1)!=B.bootstrap_arg(small, CELL_A, CELL_B, n=300)

def test_a_cell_alone_gives_the_same_resamples(small):
    "Streams are named, so adding a method to the table does not change the others"
    alone = B.replicate(small[small.method=='T+P'], n=50); r = B.replicate(small, n=50); assert np.allclose(alone.draws_Vn, r.draws_Vn[B._of(r, CELL_A)], atol=1e-9, rtol=0)

# --- what is paired, what varies -------------------------------------------------------------------------------------
def test_pairing_narrows_and_sharing_widens():
    shared = synth.predictions(seeds=(0,1,2), n=80, skill=TWO, datasets=SMALL, shared=True); apart = synth.predictions(seeds=(0,1,2), n=80, skill=TWO, datasets=SMALL)
    assert width(shared)>1.2*width(apart)                       # three seeds on the same instances are not three times the evidence
    assert width(apart, seeds='resampled')>width(apart)
    assert width(apart, resample=('instances','seeds'))==width(apart, seeds='resampled')
    r = B.replicate(shared, n=1000); d,a,b = B.estimate(r, CELL_A, CELL_B),B.estimate(r, CELL_A),B.estimate(r, CELL_B)
    assert (d['hi']-d['lo'])<.9*np.hypot(a['hi']-a['lo'], b['hi']-b['lo'])

def test_only_what_is_named_varies(small):
    one = small[small.seed==0]; sd = {r:B.replicate(one, n=2000, resample=r).draws_Vn.std(1) for r in ('instances','templates',('instances','templates'))}
    assert (sd['templates']>0).all() and (sd['templates']<sd['instances']).all() and (sd['instances','templates']>sd['instances']).all()
    assert B.replicate(one, n=5, resample='seeds').draws_Vn.std()==pytest.approx(B.replicate(one, n=1).estimate_V.std())   # instances and templates as they are

def test_identical_cells_differ_by_nothing():
    p = synth.predictions(seeds=(0,), n=30, skill={CELL_B:.3}, datasets=SMALL); both = pd.concat([p, p.assign(method='T+P')], ignore_index=True)
    for kind in B.INTERVALS: e = B.bootstrap_arg(both, CELL_A, CELL_B, n=200, interval_kind=kind); assert (e['estimate'],e['lo'],e['hi'],e['p'])==(0,0,0,1)

def test_difference_of_differences_across_backbones(small):
    two = pd.concat([small, small.assign(backbone='big', correct=small.correct|(small.instance.str[-1]=='1'))], ignore_index=True); r = B.replicate(two, n=400)
    of = lambda c,b: dict(zip(('method','prompt','shots'), c), backbone=b); terms = [(1,of(CELL_A,'big')),(-1,of(CELL_B,'big')),(-1,of(CELL_A,'tiny')),(1,of(CELL_B,'tiny'))]
    e = B.contrast(r, terms); parts = [B.contrast(r, terms[:2]),B.contrast(r, terms[2:])]
    assert e['estimate']==pytest.approx(parts[0]['estimate']+parts[1]['estimate']) and e['lo']<e['estimate']<e['hi']
    assert B.contrast(r, [(2,of(CELL_A,'big')),(-2,of(CELL_A,'big'))])['p']==1

# --- intervals and p -------------------------------------------------------------------------------------------------
def test_p_is_two_sided_and_never_zero():
    assert [B.p_value(x) for x in (np.ones(99), -np.ones(99), np.zeros(99), np.r_[np.ones(94),-np.ones(5)])]==pytest.approx([.02, .02, 1, .12])

def test_acceleration_is_the_jackknife(small):
    "Leave one instance out of the table, thirty times, and compute ARG anew"
    p = synth.predictions(seeds=(0,), n=10, skill=TWO, datasets=SMALL); r = B.replicate(p, n=10); w = np.zeros(2); w[B._of(r, CELL_A)] = 1; w[B._of(r, CELL_B)] = -1
    arg = lambda q: (lambda t: t['T+P']-t['T-only'])(M.arg_table(M.accuracy(q).assign(metric='accuracy'), baseline='chance').set_index('method').arg)
    two = three = 0
    for d,g in p.groupby('dataset'):
        left = np.array([arg(p[p.instance!=i]) for i in sorted(g.instance.unique())]); u = (len(left)-1)*(left.mean()-left)/len(left); two += (u**2).sum(); three += (u**3).sum()
    assert B.acceleration([s@w[i] for i,s in r.share])==pytest.approx(three/(6*two**1.5), rel=1e-6)

def test_bca_matches_scipy():
    stats = pytest.importorskip('scipy.stats'); x = np.random.default_rng(3).exponential(size=40); draws = np.concatenate([c@x/40 for _,c in _counts(np.random.default_rng(0), 20000, 40)])
    lo,hi = B.interval(draws, x.mean(), kind='bca', acceleration=B.acceleration([(x-x.mean())/40])); theirs = stats.bootstrap((x,), np.mean, n_resamples=20000, method='BCa', rng=np.random.default_rng(1)).confidence_interval
    assert (lo,hi)==pytest.approx((theirs.low,theirs.high), abs=.02); assert hi-x.mean()>1.1*(x.mean()-lo)

def test_an_interval_excludes_0_when_p_says_so():
    "To within one resample: intervals interpolate between two, p counts"
    gen = np.random.default_rng(0); draws = gen.gamma(3, size=(200,399))-gen.uniform(0,4,(200,1)); est = draws.mean(1)+gen.normal(0,.1,200)
    for kind in B.INTERVALS:
        lo,hi = B.interval(draws, est, kind=kind, acceleration=np.full(200,.05)); p = B.p_value(draws, est, kind=kind, acceleration=np.full(200,.05))
        assert (((lo>0)|(hi<0))==(p<=.05))[abs(p-.05)>.003].all() and 10<(p<=.05).sum()<190

@pytest.mark.parametrize('name', list(coverage_study.SCENARIOS)[:3])
def test_the_interval_covers_the_truth(name):
    "400 studies: 95 % has a standard error of 1.1 points, so 92 to 98 % cannot be luck; the full simulation is tests/bench/interval_coverage.py"
    rows = {r['procedure']:r for r in coverage_study.simulate(name, 400, 300, batch=100, seed=7)}
    for kind in B.INTERVALS: assert .92<=rows[kind]['covered']<=.98, rows[kind]
    if name.startswith(('no','better')):
        for kind in B.INTERVALS: assert .02<=rows[kind]['p_at_most_5']<=.085, rows[kind]
        assert rows['wu2022']['p_at_most_5']>.3 and rows['wu2022']['covered']<.7

def test_the_simulation_can_fail(monkeypatch):
    "Resampling templates as if they had instances of their own is what a naive bootstrap does: its intervals are too narrow"
    real = coverage_study._block_draws; monkeypatch.setattr(coverage_study, '_block_draws', lambda b,c,n,gen: (lambda x: x.mean(0)+(x-x.mean(0))/2)(real(b, c, n, gen)))
    assert coverage_study.simulate('no difference', 100, 200, batch=100)[1]['covered']<.85

def test_the_committed_figures():
    t = pd.read_csv(coverage_study.OUT).set_index(['scenario','procedure']); assert (t.studies>=900).all()
    for s in list(coverage_study.SCENARIOS)[:3]: assert .93<=t.covered[s,'bca']<=.97
    for s in list(coverage_study.SCENARIOS)[:2]: assert .035<=t.p_at_most_5[s,'bca']<=.065 and not .035<=t.p_at_most_5[s,'wu2022']<=.065

# --- Holm, the paper's procedure -------------------------------------------------------------------------------------
def test_holm_by_hand_and_in_any_order():
    p = np.array([.01,.04,.03,.005,np.nan]); assert holm(p)==pytest.approx([.03,.06,.06,.02,np.nan], nan_ok=True)
    for o in itertools.islice(itertools.permutations(range(5)), 0, 120, 7): assert holm(p[list(o)])==pytest.approx(holm(p)[list(o)], nan_ok=True)
    assert holm([.6,.6]).tolist()==[1,1] and holm([]).tolist()==[]

def released(): return [R.pick(released_rows(), method=m) for m in ('T+P','T-only')]

def test_wu2022_on_the_released_scores():
    a,b = released(); e = wu2022(a, b); assert e['estimate']==pytest.approx(43.19-42.91, abs=.01)
    assert e['p']==pytest.approx(.217, abs=3*np.sqrt(.217*.783/1000))                            # its own thousand iterations
    more = wu2022(a, b, n=20000); assert more['p']==pytest.approx(.217, abs=3*np.sqrt(.217*.783/1000)) and more['sd']==pytest.approx(.37, abs=.01)
    assert wu2022(b, a)['p']>.7 and wu2022(a.sample(frac=1, random_state=1), b.sample(frac=1, random_state=2))==e

def test_wu2022_is_what_the_paper_wrote():
    "Rebuild, zip and resample literally: n right ones, then zeros"
    a,b = (r[r.dataset.isin(['cb','copa'])] for r in released()); gen = np.random.default_rng(0); out = []
    lists = [(1/(2*sum(a.dataset==x.dataset)*x.chance), *(np.arange(x.n)<round(v*x.n) for v in (x.value,y.value))) for x,y in zip(a.itertuples(), b.itertuples())]
    for _ in range(600): out.append(100*sum(w*(np.mean(p[at])-np.mean(q[at])) for w,p,q in lists for at in [gen.integers(0, len(p), len(p))]))
    e = wu2022(a, b, n=4000); assert np.std(out)==pytest.approx(e['sd'], rel=.1) and np.mean(np.array(out)<0)==pytest.approx(e['p'], abs=.05)

def test_wu2022_from_predictions_and_its_refusals(small):
    one = small[(small.seed==0)&(small.shots==16)]; e = B.bootstrap_arg(one, CELL_A, CELL_B, procedure='wu2022', n=2000); assert e['estimate']==pytest.approx(B.bootstrap_arg(one, CELL_A, CELL_B, n=10)['estimate'])
    with pytest.raises(UserError, match='compares single runs, but 2 seeds'): B.bootstrap_arg(small, CELL_A, CELL_B, procedure='wu2022')
    with pytest.raises(UserError, match='give cell_b'): B.bootstrap_arg(one, CELL_A, procedure='wu2022')
    a,b = released()
    with pytest.raises(UserError, match='same templates'): wu2022(a, b[1:])
    with pytest.raises(UserError, match='one entry per key'): wu2022(a, pd.concat([b,b]))

# --- refusals --------------------------------------------------------------------------------------------------------
def test_refuses_damaged_predictions(small):
    cases = [(small.rename(columns=dict(instance='example')), ["missing ['instance']",'renamed?']), (pd.concat([small,small[:2]]), ['one entry per key','share one',"runs ['T+P-shallow-16-0']"]),
             (pd.concat([small, small[:1].assign(run='again')]), ["runs ['T+P-shallow-16-0', 'again']",'keep one of them']),
             (small.assign(correct=small.correct.astype(object).where(small.index>2, None)), ['must have a correct','have none']), (small.assign(template=small.template.where(small.index>0, None)), ['must have a template'])]
    for p,parts in cases:
        with pytest.raises(UserError) as e: B.replicate(p, n=5)
        says(e, *parts)

def test_refuses_cells_that_cannot_be_compared(small):
    lost = small[~((small.method=='T+P')&(small.template=='a_a'))]
    with pytest.raises(UserError, match='same templates'): B.bootstrap_arg(lost, CELL_A, CELL_B, n=10)
    with pytest.raises(UserError, match='resampling templates needs the same templates in every cell, but the cells differ in those of a'): B.replicate(lost, n=10, resample='templates')
    fewer = small[~((small.method=='T+P')&small.instance.str.endswith('/3'))]
    with pytest.raises(UserError, match='same instances'): B.bootstrap_arg(fewer, CELL_A, CELL_B, n=10)
    with pytest.raises(UserError, match='compare within one suite'): B.bootstrap_arg(pd.concat([small, small.assign(suite='other')]), CELL_A, n=10)
    with pytest.raises(UserError, match='compare within one backbone'): B.bootstrap_arg(pd.concat([small, small.assign(backbone='other')]), CELL_A, n=10)

def test_refuses_rows_of_another_run(small):
    rows = synth.rows(small)
    with pytest.raises(UserError, match='must come from the same runs'): B.replicate(small, rows=rows.assign(value=.5), n=5)
    with pytest.raises(UserError, match='predictions without a row'): B.replicate(small, rows=rows[1:], n=5)
    with pytest.raises(UserError, match='one entry per key'): B.replicate(small, rows=pd.concat([rows,rows]), n=5)
    bare = small.drop(columns=['gold','scores_sum','scores_mean','pred']); assert np.allclose(B.replicate(bare, rows=rows, n=5).draws_Vn, B.replicate(small, n=5).draws_Vn)
    with pytest.raises(UserError, match="baseline 'chance' needs a column"): B.replicate(bare, n=5)

def test_refuses_unknown_options(small):
    for kw,text in [(dict(resample=[]),'got nothing'), (dict(resample='shots'),"['instances', 'templates', 'seeds']"), (dict(by='macro11'),'macro9')]:
        with pytest.raises(UserError) as e: B.replicate(small, n=5, **kw)
        says(e, text)
    r = B.replicate(small, n=5, resample=('instances','templates'))
    with pytest.raises(UserError, match="interval_kind='percentile'"): B.estimate(r, CELL_A, interval_kind='bca')
    with pytest.raises(UserError, match='seeds must be one of'): B.estimate(r, CELL_A, seeds='some')

# --- table 1, speed --------------------------------------------------------------------------------------------------
def test_table1_order_stars_and_gaps():
    p = synth.predictions(seeds=(0,), n=20, datasets=SMALL); p = p[~((p.method=='P-only')&(p.shots==16))]; order = ['T+P','P-only','none','T-only']
    t = B.interval_table(synth.rows(p), p, methods=order, n=100)
    assert list(t.columns[:7])==['method','prompt','shots','arg','lo','hi','seeds'] and list(dict.fromkeys(t.method))==order
    assert set(map(tuple, t[t.star][['method','prompt','shots']].values))=={(m,q,0) for m in ('none','T-only') for q in ('shallow','deep')}
    assert not ((t.method=='P-only')&((t.shots==16)|(t.prompt=='deep'))).any()
    assert t[(t.method=='none')&(t.shots==0)].arg.nunique()==1

def test_fast_enough():
    n,T,D,V = 2000,5,4,7; i = np.arange(D*T*V*n); p = pd.DataFrame(dict(suite='s', backbone='b', method=[f'm{k}' for k in range(V)]*(D*T*n), prompt='deep', shots=16, seed=0, cluster='c'))
    d,t,x = i//V//n//T,i//V//n%T,i//V%n; p = p.assign(dataset=np.char.add('d', d.astype(str)), template=np.char.add('t', t.astype(str)), instance=x.astype(str), gold=0, correct=np.random.default_rng(0).random(len(i))<.6, chance=.5)
    rows = M.accuracy(p).assign(chance=.5); start = time.process_time(); B.replicate(p, rows=rows, n=1000); assert time.process_time()-start<5
