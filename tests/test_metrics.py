"Accuracy and ARG: hand examples, the paper's released scores, and refusals that name what is wrong"
import subprocess, sys
import numpy as np, pandas as pd, pytest
import synth
from promptbench.base.core import UserError
from promptbench.stats import results as R; from promptbench.stats import metrics as M
from promptbench.stats.paper import released_rows

SMALL = [('nli','a',2,2), ('nli','b',3,3), ('completion','c',4,2)]
TWO = {('T+P','shallow',16):.4, ('T-only','shallow',16):.3}

@pytest.fixture(scope='module')
def small(): return synth.predictions(seeds=(0,1), n=40, skill=TWO|{('T-only','none',0):.4}, datasets=SMALL)

def hand():
    "Two groups: A pools a1 (60 %, chance 50 %) and a2 (70 %); B is b (50 %, chance 25 %). Gains 20, 40 and 100"
    return pd.DataFrame([dict(dataset=d, template='t', value=v, chance=c, majority=m) for d,v,c,m in [('a1',.6,.5,.5),('a2',.7,.5,.6),('b',.5,.25,.4)]])

def says(e, *parts): assert all(p in str(e.value) for p in parts), str(e.value)

# --- ARG -------------------------------------------------------------------------------------------------------------
def test_two_group_example_by_hand():
    groups = dict(a1='A', a2='A')
    for by in ('macro9','groups'): assert M.arg(hand(), baseline='chance', by=by, groups=groups)==pytest.approx((30+100)/2)
    assert M.arg(hand(), baseline='chance', by='datasets', groups=groups)==pytest.approx(160/3)
    assert M.arg(hand(), baseline='chance', by='templates')==pytest.approx(160/3)
    assert M.arg(hand(), baseline='majority', groups=groups)==pytest.approx(100*((.2+.1/.6)/2+.25)/2)
    assert M.arg(hand(), baseline=hand().assign(value=.4), groups=groups)==pytest.approx(100*((.5+.75)/2+.25)/2)

@pytest.mark.parametrize('method,want', [('T-only',(42.91,36.98,38.70)), ('T+P',(43.19,37.62,39.36))])
def test_released_scores_in_three_readings(method, want):
    rows = R.pick(released_rows(), method=method).sample(frac=1, random_state=4)
    assert [M.arg(rows, baseline='chance', by=b) for b in M.BY]==pytest.approx(want, abs=.01)   # the default groups are the paper's nine
    assert M.arg(rows, baseline='chance', by='macro9', groups={})==pytest.approx(want[1], abs=.01)
    parts = M.contributions(rows, baseline='chance'); assert len(parts)==9 and parts.points.sum()==pytest.approx(want[0], abs=.01) and parts.weight.sum()==pytest.approx(1)

def test_a_suite_brings_its_groups():
    assert M.groups_of(['x','y'], groups=dict(x='one', y='one')).tolist()==['one','one']
    assert M.groups_of(['anli_r1','cb']).tolist()==['ANLI','cb'] and M.groups_of(['anli_r1','cb'], groups={}).tolist()==['anli_r1','cb']
    with pytest.raises(UserError) as e: M.groups_of(['x'], groups=dict(z='one'))
    says(e, "datasets that are not there: ['z']", "there are ['x']")
    with pytest.raises(UserError) as e: M.groups_of(['x'], 'macro11')
    says(e, "['macro9', 'datasets', 'templates']", "'macro11'")

# --- accuracy --------------------------------------------------------------------------------------------------------
def test_accuracy_agrees_with_a_loop_and_with_categories(small):
    a = M.accuracy(small); key = M.LINE
    for k,g in small.groupby(key): 
        row = a[(a[key]==pd.Series(dict(zip(key, k)))).all(axis=1)].iloc[0]
        assert (row.value, row.n)==(pytest.approx(g.correct.mean()), len(g)) and row.chance==pytest.approx((1/g.scores_sum.map(len)).mean()) and row.majority==pytest.approx(g.gold.value_counts().max()/len(g))
    cats = small.astype({c:'category' for c in ('suite','backbone','method','prompt','cluster','dataset','template','instance')})
    pd.testing.assert_frame_equal(a, M.accuracy(cats), check_dtype=False)

def test_row_order_never_matters(small):
    rows = synth.rows(small); sort = lambda t: t.sort_values(['method','prompt','shots'], ignore_index=True)
    pd.testing.assert_frame_equal(sort(M.arg_table(rows, baseline='chance')), sort(M.arg_table(rows.sample(frac=1, random_state=2), baseline='chance')))
    key = M.LINE; sort = lambda t: t.sort_values(key, ignore_index=True)
    pd.testing.assert_frame_equal(sort(M.accuracy(small)), sort(M.accuracy(small.sample(frac=1, random_state=3))))
    base = R.pick(rows, method='T-only', shots=16); mine = R.pick(rows, method='T+P')
    assert M.arg(mine, baseline=base)==M.arg(mine.sample(frac=1, random_state=5), baseline=base.sample(frac=1, random_state=6))

# --- refusals --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('baseline,text', [(hand()[:2], "no baseline for ['b']"), (hand().assign(value=0), "above 0, got 0 for ['a1', 'a2', 'b']"), ('luck', "must be 'chance', 'majority' or a table of rows, got 'luck'"),
                                           (None, 'got None'), (pd.concat([hand(),hand()]), 'must have one value per')])
def test_refuses_a_bad_baseline(baseline, text):
    with pytest.raises(UserError) as e: M.arg(hand(), baseline=baseline)
    says(e, text)

def test_refuses_a_missing_baseline():
    with pytest.raises(UserError, match='a column of that name'): M.arg(hand().drop(columns='chance'), baseline='chance')
    with pytest.raises(UserError) as e: M.arg(hand().assign(chance=[.5,np.nan,.25]), baseline='chance')
    says(e, "no baseline for ['a2']", 'give one row per dataset and template')
    with pytest.raises(TypeError): M.arg(hand())

def test_refuses_renamed_columns():
    with pytest.raises(UserError) as e: M.arg(hand().rename(columns=dict(value='acc')), baseline='chance')
    says(e, "missing ['value']", "'acc'", 'renamed?')
    with pytest.raises(UserError) as e: M.accuracy(pd.DataFrame(dict(correct=[True], task=['x'])))
    says(e, "missing ['suite'", 'renamed?')

def test_refuses_gaps(small):
    with pytest.raises(UserError) as e: M.arg(hand().assign(value=[.6,np.nan,.5]), baseline='chance')
    says(e, 'must have a value', '1 of 3 have none', "{'dataset': 'a2', 'template': 't'}", 'remove or repair')
    with pytest.raises(UserError) as e: M.accuracy(small.assign(correct=small.correct.astype(object).where(small.index>0, None)))
    says(e, 'must have a correct', f'1 of {len(small)} have none')
    with pytest.raises(UserError, match='must have a seed'): M.arg_table(hand().assign(seed=[0,np.nan,0]), baseline='chance')

def test_refuses_duplicates_and_two_runs_under_one_key():
    with pytest.raises(UserError) as e: M.arg(pd.concat([hand(),hand()]), baseline='chance')
    says(e, 'one entry per key (dataset, template)', '6 share one', "first {'dataset': 'a1', 'template': 't'}")
    with pytest.raises(UserError) as e: M.arg_table(pd.concat([hand().assign(run='mon'), hand().assign(run='tue', value=.9)]), baseline='chance')
    says(e, "(runs ['mon', 'tue'])", 'keep one of them')

def test_refuses_a_missing_template():
    with pytest.raises(UserError) as e: M.arg(pd.concat([hand().assign(seed=0), hand()[1:].assign(seed=1)]), baseline='chance')
    says(e, "{'seed': 1} lacks [('a1', 't')]")
    with pytest.raises(UserError) as e: M.arg(hand()[1:], baseline=pd.concat([hand(), hand()[1:2].assign(template='u')]))
    says(e, "lack 1, first {'dataset': 'a2', 'template': 'u'}")

def test_refuses_several_metrics_or_cells():
    with pytest.raises(UserError, match='of one metric'): M.arg(pd.concat([hand().assign(metric='accuracy'), hand().assign(metric='f1')]), baseline='chance')
    with pytest.raises(UserError, match='number of one cell'): M.arg(pd.concat([hand().assign(method='x'), hand().assign(method='y')]), baseline='chance')

def test_no_torch():
    code = "import sys, promptbench.stats.results, promptbench.stats.metrics, promptbench.stats.bootstrap, promptbench.stats.paper, promptbench.stats.claims; sys.exit(any(m in sys.modules for m in ('torch','scipy','plotly')))"
    assert subprocess.run([sys.executable, '-c', code]).returncode==0
