"Statistics: hand examples, pairing, coverage, refusals, the paper's released scores"
import subprocess, sys, time
import numpy as np, pandas as pd, pytest
import synth
from promptbench.core import UserError, data_dir
from promptbench import results as R, metrics as M, claims as C

CELL_A,CELL_B = ('T+P','shallow',16),('T-only','shallow',16)
TWO = {CELL_A:.4, CELL_B:.3}
SMALL = [('nli','a',2,2), ('nli','b',3,3), ('completion','c',4,2)]

@pytest.fixture(scope='module')
def small(): return synth.predictions(seeds=(0,1), n=40, skill=TWO|{('T-only','none',0):.4}, datasets=SMALL)

def hand():
    "Two groups: A pools a1 (60 %, chance 50 %) and a2 (70 %); B is b (50 %, chance 25 %). Gains 20, 40 and 100"
    return pd.DataFrame([dict(dataset=d, template='t', value=v, chance=c, majority=m) for d,v,c,m in [('a1',.6,.5,.5),('a2',.7,.5,.6),('b',.5,.25,.4)]])

def test_two_group_example_by_hand():
    groups = dict(a1='A', a2='A')
    assert M.arg(hand(), baseline='chance', by='groups', groups=groups)==pytest.approx((30+100)/2)
    assert M.arg(hand(), baseline='chance', by='datasets', groups=groups)==pytest.approx(160/3)
    assert M.arg(hand(), baseline='chance', by='templates')==pytest.approx(160/3)
    assert M.arg(hand(), baseline='majority', groups=groups)==pytest.approx(100*((.2+.1/.6)/2+.25)/2)
    assert M.arg(hand(), baseline=hand().assign(value=.4), groups=groups)==pytest.approx(100*((.5+.75)/2+.25)/2)

@pytest.mark.parametrize('model,want', [('T0_reproduction',(42.91,36.98,38.70)), ('MTL_TfirePfire',(43.19,37.62,39.36))])
def test_released_scores(model, want):
    xl = C.paper('promptability_xl_deep_16shot_per_template'); assert xl.source.notna().all()
    rows = pd.DataFrame(dict(dataset=xl.dataset, template=xl.inferred_task_name, value=xl['acc_'+model], chance=xl.chance))
    got = [M.arg(rows.sample(frac=1, random_state=4), baseline='chance', by=b, groups={f'anli_r{i}':'ANLI' for i in (1,2,3)}) for b in M.BY]
    assert got==pytest.approx(want, abs=.01)

@pytest.mark.parametrize('baseline,says', [(hand()[:2], "no baseline for ['b']"), (hand().assign(value=0), 'above 0'), ('luck', "'chance', 'majority' or a table"),
                                           (pd.concat([hand(),hand()]), 'one value per')])
def test_refuses_a_bad_baseline(baseline, says):
    with pytest.raises(UserError) as e: M.arg(hand(), baseline=baseline)
    assert says in str(e.value)

def test_refuses_a_missing_chance_column():
    with pytest.raises(UserError, match='a column of that name'): M.arg(hand().drop(columns='chance'), baseline='chance')
    with pytest.raises(UserError, match='no baseline'): M.arg(hand().assign(chance=[.5,np.nan,.25]), baseline='chance')
    with pytest.raises(TypeError): M.arg(hand())

def test_refuses_damaged_rows():
    for broken,says in [(hand().assign(value=np.nan),'must have a value'), (pd.concat([hand(),hand()]),'share one'), (hand().rename(columns=dict(value='acc')),"missing ['value']")]:
        with pytest.raises(UserError) as e: M.arg(broken, baseline='chance')
        assert says in str(e.value)
    with pytest.raises(UserError, match='lacks'): M.arg(pd.concat([hand().assign(seed=0), hand()[1:].assign(seed=1)]), baseline='chance')

def test_row_order_never_matters(small):
    rows = synth.rows(small); mixed = small.sample(frac=1, random_state=9)
    pd.testing.assert_frame_equal(M.arg_table(rows, baseline='chance').sort_values('arg', ignore_index=True), M.arg_table(rows.sample(frac=1, random_state=2), baseline='chance').sort_values('arg', ignore_index=True))
    assert M.bootstrap_arg(small, CELL_A, CELL_B, n=300)==M.bootstrap_arg(mixed, CELL_A, CELL_B, n=300)
    pd.testing.assert_frame_equal(C.judge(rows, small, n=200), C.judge(rows.sample(frac=1, random_state=5), mixed, n=200))

def test_estimate_is_arg_and_seeds_are_averaged(small):
    rows = synth.rows(small); a = R.pick(rows, method='T+P'); e = M.bootstrap_arg(small, CELL_A, n=200)
    assert e['estimate']==pytest.approx(np.mean([M.arg(a[a.seed==s], baseline='chance') for s in (0,1)])); assert e['seeds']==2
    assert e['n_instances']==2*40*3      # other instances per seed
    shared = synth.predictions(seeds=(0,1), n=40, skill=TWO, datasets=SMALL, shared=True)
    assert M.bootstrap_arg(shared, CELL_A, n=50)['n_instances']==40*3

def slow_bootstrap(preds, cells, n, gen):
    "The obvious loop: draw ids per dataset and seed, look every answer up, average"
    table = {k:dict(zip(g.instance, g.correct)) for k,g in preds.groupby(['method','seed','dataset','template'])}
    names = sorted(preds.dataset.unique()); seeds = sorted(preds.seed.unique()); out = []
    chance = preds.assign(c=1/preds.scores_sum.map(len)).groupby('dataset').c.first()
    ids = {(s,d):sorted(preds[(preds.seed==s)&(preds.dataset==d)].instance.unique()) for s in seeds for d in names}
    for _ in range(n):
        draw = {k:gen.choice(v, len(v)) for k,v in ids.items()}
        arg = lambda m: np.mean([np.mean([np.mean([100*(np.mean([table[m,s,d,t][i] for i in draw[s,d]])-chance[d])/chance[d] for (m_,s_,d_,t) in table if (m_,s_,d_)==(m,s,d)]) for d in names]) for s in seeds])
        out.append(arg(cells[0])-arg(cells[1]))
    return np.array(out)

def test_agrees_with_the_obvious_loop(small):
    part = small[small.shots==16]; loop = slow_bootstrap(part, ('T+P','T-only'), 150, np.random.default_rng(0))
    r = M.replicate(part, n=4000); fast = M._mean(r, M._of(r, CELL_A), 'fixed')-M._mean(r, M._of(r, CELL_B), 'fixed')
    assert fast.std()==pytest.approx(loop.std(), rel=.2); assert fast.mean()==pytest.approx(loop.mean(), abs=4*loop.std()/np.sqrt(150))

def test_templates_that_skip_instances():
    p = synth.predictions(seeds=(0,), n=60, skill=TWO, datasets=SMALL); half = p[~((p.template=='a_a')&(p.instance.str.split('/').str[-1].astype(int)>=25))]
    r = M.replicate(half, n=2000); e = M.estimate(r, CELL_A)
    assert e['estimate']==pytest.approx(M.arg(R.pick(synth.rows(half), method='T+P'), baseline='chance')); assert e['n_instances']==180
    assert M.estimate(M.replicate(p, n=2000), CELL_A)['hi']-M.estimate(M.replicate(p, n=2000), CELL_A)['lo'] < e['hi']-e['lo']

def test_pairing_narrows_and_sharing_widens():
    shared = synth.predictions(seeds=(0,1,2), n=80, skill=TWO, datasets=SMALL, shared=True); apart = synth.predictions(seeds=(0,1,2), n=80, skill=TWO, datasets=SMALL)
    width = lambda p,**k: (lambda e: e['hi']-e['lo'])(M.bootstrap_arg(p, CELL_A, n=1000, **k))
    assert width(shared)>1.2*width(apart)                       # three seeds on the same instances are not three times the evidence
    assert width(apart, seeds='resampled')>width(apart)
    r = M.replicate(shared, n=1000); d = M.estimate(r, CELL_A, CELL_B); a,b = M.estimate(r, CELL_A),M.estimate(r, CELL_B)
    assert (d['hi']-d['lo'])<.9*np.hypot(a['hi']-a['lo'], b['hi']-b['lo'])

def test_identical_cells_differ_by_nothing():
    p = synth.predictions(seeds=(0,), n=30, skill={CELL_B:.3}, datasets=SMALL); both = pd.concat([p, p.assign(method='T+P')], ignore_index=True)
    e = M.bootstrap_arg(both, CELL_A, CELL_B, n=200); assert (e['estimate'],e['lo'],e['hi'],e['p'])==(0,0,0,1)

def test_refuses_cells_that_cannot_be_compared(small):
    lost = small[~((small.method=='T+P')&(small.template=='a_a'))]
    with pytest.raises(UserError, match='same templates'): M.bootstrap_arg(lost, CELL_A, CELL_B, n=10)
    fewer = small[~((small.method=='T+P')&small.instance.str.endswith('/3'))]
    with pytest.raises(UserError, match='same instances'): M.bootstrap_arg(fewer, CELL_A, CELL_B, n=10)
    with pytest.raises(UserError, match='within one suite'): M.bootstrap_arg(pd.concat([small, small.assign(suite='other')]), CELL_A, n=10)

DESIGN = [(2,.6), (3,.5), (4,.4)] # Choices and easiness of three datasets with two templates each
MOMENT = np.random.default_rng(1).normal(0, .25, 20000)

def frame(n):
    "Everything of a study but its outcomes"
    key = [(m,d,t,i) for d in range(len(DESIGN)) for m in ('T+P','T-only') for t in range(2) for i in range(n)]
    p = pd.DataFrame([dict(method=m, dataset=f'd{d}', template=f't{t}', instance=f'd{d}/{i}') for m,d,t,i in key])
    return p.assign(suite='s', backbone='b', prompt='shallow', shots=16, seed=0, cluster='c', gold=0, scores_sum=[[0.]*DESIGN[d][0] for _,d,_,_ in key])

def simulate(gen, empty, effect=.06):
    "Outcomes of one study, correlated through how easy an instance is (shared by templates and methods), and the true difference in ARG"
    n,ok,truth = len(empty)//12,[],[]
    for c,base in DESIGN:
        easy = gen.normal(0, .25, n)
        for shift in (effect,0):
            for t in range(2): ok.append(gen.random(n)<np.clip(base+shift+.03*t+easy, .02, .98))
        mean = lambda s: np.mean([np.clip(base+s+.03*t+MOMENT, .02, .98).mean() for t in range(2)]); truth.append(100*c*(mean(effect)-mean(0)))
    ok = np.concatenate(ok); return empty.assign(correct=ok, pred=np.where(ok,0,1)),float(np.mean(truth))

def test_the_interval_covers_the_truth():
    gen,inside,studies,empty = np.random.default_rng(11),0,200,frame(100)
    for s in range(studies):
        p,truth = simulate(gen, empty); e = M.bootstrap_arg(p, CELL_A, CELL_B, n=300, seed=s); inside += e['lo']<=truth<=e['hi']
    assert .90<=inside/studies<=.99, inside/studies

def test_p_is_two_sided_and_never_zero():
    assert M.two_sided_p(np.ones(99))==pytest.approx(2/100) and M.two_sided_p(-np.ones(99))==pytest.approx(2/100) and M.two_sided_p(np.zeros(99))==1
    assert M.two_sided_p(np.r_[np.ones(94),-np.ones(5)])==pytest.approx(.12)

def test_table1_order_stars_and_gaps():
    p = synth.predictions(seeds=(0,), n=20, datasets=SMALL); p = p[~((p.method=='P-only')&(p.shots==16))]; order = ['T+P','P-only','none','T-only']
    t = M.table1(synth.rows(p), p, methods=order, n=100)
    assert list(t.columns[:7])==['method','prompt','shots','arg','lo','hi','seeds'] and list(dict.fromkeys(t.method))==order
    assert set(map(tuple, t[t.star][['method','prompt','shots']].values))=={(m,q,0) for m in ('none','T-only') for q in ('shallow','deep')}
    assert not ((t.method=='P-only')&((t.shots==16)|(t.prompt=='deep'))).any()
    assert t[(t.method=='none')&(t.shots==0)].arg.nunique()==1

def test_claims_cover_the_paper_and_judge_by_interval():
    p = synth.predictions(seeds=(0,1), n=60); j = C.judge(synth.rows(p), p, n=400).set_index('claim')
    assert set(j.verdict)<=set(C.VERDICTS) and {c.split('.')[0] for c in j.index}=={f'C{i}' for i in (1,2,3,4,5,6,7,8,10,11,12,13,14,15)}
    assert (j.loc[['C3','C4','C7','C12.MTL'],'verdict']=='holds').all() and (j[j.index.str.startswith(('C13','C14','C15'))].verdict=='not run').all()
    ran = j[j.verdict!='not run']; assert ran.p.between(0,1).all() and (ran.lo<=ran.estimate).all() and (ran.estimate<=ran.hi).all()

def test_fast_enough():
    rng,n = np.random.default_rng(0),2000; parts = []
    for d in range(4):
        for t in range(5):
            for m in range(7): parts.append(pd.DataFrame(dict(suite='s', backbone='b', method=f'm{m}', prompt='deep', shots=16, seed=0, cluster='c', dataset=f'd{d}', template=f't{t}', instance=np.arange(n).astype(str), gold=0, pred=0, correct=rng.random(n)<.6, scores_sum=[[0.,0.]]*n)))
    p = pd.concat(parts, ignore_index=True); start = time.process_time(); M.replicate(p, n=1000); assert time.process_time()-start<10

def test_no_torch():
    code = "import sys, promptbench.results, promptbench.metrics, promptbench.claims, promptbench.page, promptbench.plots, promptbench.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code]).returncode==0
