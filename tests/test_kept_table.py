"The tables kept in `data/results` are what this code, this world and these weights give, and show what the documentation says of them"
import json
import pandas as pd, pytest, yaml
from compare_table import compare
from promptbench.base.core import data_dir
from promptbench.stats.metrics import arg, relative_gain
from promptbench.train.scales import tiny_settings
from promptbench.stats.results import read_rows
from promptbench.base import catalogue
from promptbench.studies.table1 import Settings, at_scale, gather, run_all

KEPT = data_dir('results','table1-tiny')

@pytest.fixture(scope='module')
def table(): return pd.read_csv(KEPT/'table1.csv')
@pytest.fixture(scope='module')
def rows(): return read_rows(KEPT/'rows.parquet')
@pytest.fixture(scope='module')
def settings(): return json.loads((KEPT/'settings.json').read_text())

def test_it_was_made_with_the_frozen_settings(settings, rows):
    now = Settings(); assert settings['pretrain'] is None and settings['tune'] is None and settings['backbone']=='tiny' and settings['role']=='eval', 'no change beyond the number of instances'
    assert settings['templates'] in (None, at_scale(now, 'templates')) and settings['n_eval']>=200 and set(rows.n)=={settings['n_eval']}
    assert settings['frozen']==tiny_settings() and settings['seeds']==[0,1,2,3,4]

def test_its_parts_agree(table, rows):
    for t in table.itertuples():
        of = rows[(rows.method==t.method)&(rows.prompt==('none' if t.star else t.prompt))&(rows.shots==t.shots)]
        assert of.seed.nunique()==5 and abs(of.groupby('seed')[of.columns.tolist()].apply(lambda d: arg(d, baseline='chance')).mean()-t.arg)<.01, t

@pytest.mark.outcome
@pytest.mark.slow
@pytest.mark.parametrize('seed', [0,3])
def test_the_backbone_alone_scores_the_same_again(rows, settings, seed, tmp_path):
    "Cells without training are computed again: the same answers, but for roundings of another processor"
    s = Settings(methods=('none',), shots=(0,), seeds=(seed,), n_eval=settings['n_eval'], precision='fp32'); run_all(s, tmp_path, workers=1, quiet=True); keys = ['dataset','template']
    d = gather(s, tmp_path)['rows'].merge(rows[(rows.method=='none')&(rows.shots==0)&(rows.seed==seed)], on=keys, suffixes=('','_kept')); assert len(d)==18
    assert (d.value-d.value_kept).abs().max()<=.05 and abs((d.value-d.value_kept).mean())<.01

@pytest.mark.outcome
@pytest.mark.slow
def test_a_trained_cell_comes_out_again(runs, settings, tmp_path):
    """Pretraining without a prompt on seed 0, in a minute: its ARG is one of those that ten kept runs come from. A seed does not fix it:
    other roundings lead a run elsewhere (seed 0: 42.5 points kept, 51.0 with weights nudged by one part in a million), so the kept seed 0
    is no better guide than the other nine (42 to 61 points, the bare backbone below 6)"""
    of = lambda method: runs[(runs.method==method)&(runs.shots==0)].groupby('seed')[list(runs.columns)].apply(lambda d: arg(d, baseline='chance'))
    kept,bare = of('T-only'),of('none'); low,high = kept.mean()-3*kept.std(),kept.mean()+3*kept.std(); assert len(kept)==10 and bare.max()<low-10
    s = Settings(methods=('T-only',), shots=(0,), seeds=(0,), n_eval=settings['n_eval']); run_all(s, tmp_path, workers=1, quiet=True)
    assert low<arg(gather(s, tmp_path)['rows'], baseline='chance')<high

def test_the_comparison_can_fail(table):
    assert compare(table, table).agrees.all()
    other = table.copy(); other.loc[3,'arg'] = other.hi[3]+.1; assert list(compare(other, table).agrees[lambda a: ~a].index)==[3]
    assert not compare(table.drop(2), table).agrees[2], 'a missing cell does not agree'

# --- the second backbone, and both together ---------------------------------------------------------------------------
ONE,BOTH = data_dir('results','table1-tiny-1'),data_dir('results','table1-both')
CELL = ['method','prompt','shots']

@pytest.fixture(scope='module')
def runs(rows): return pd.concat([rows[rows.method.isin(METHODS)], read_rows(ONE/'rows.parquet').assign(seed=lambda d: d.seed+100)], ignore_index=True)
METHODS = json.loads((ONE/'settings.json').read_text())['methods'] # those of both tables, whatever has come since

def test_the_second_backbone_had_the_same_settings(settings):
    other = json.loads((ONE/'settings.json').read_text()); assert other['backbone']=='tiny-1' and set(METHODS)<=set(catalogue.METHODS)
    assert {k:v for k,v in other.items() if k not in ('backbone','methods')}=={k:v for k,v in settings.items() if k not in ('backbone','methods')}

def test_ten_runs_are_both_tables(table, runs):
    pooled = pd.read_csv(BOTH/'table1.csv'); other = pd.read_csv(ONE/'table1.csv'); assert set(pooled.seeds)=={10} and runs.seed.nunique()==10
    d = pooled.merge(table, on=CELL, suffixes=('','_0')).merge(other, on=CELL, suffixes=('','_1')); assert len(d)==24 and ((d.arg_0+d.arg_1)/2-d.arg).abs().max()<.01
    assert ((d.hi-d.lo)>(d.hi_0-d.lo_0)).mean()>.9, 'runs differ by more than instances do'

def test_what_the_world_must_show(runs):
    "In ten runs on two backbones: the effects of the paper's table that the world was built for, and nothing that turns one round"
    d = pd.read_csv(BOTH/'table1.csv').set_index(CELL)['arg']; none = d['none','shallow',0]
    for p in ('shallow','deep'): assert d['T+P',p,0]>=20 and d['T+P',p,0]-none>=10 and abs(d['P-only',p,0]-none)<=8
    c = pd.read_csv(BOTH/'claims.csv').set_index('claim'); run = c[c.verdict!='not run']; first = run[run.index.str.extract(r'^C(\d+)', expand=False).astype(int)<=12]
    assert set(c.verdict[['C3','C4','C5','C7','C11.MTL','C12.MTL','C13.FOMAML.sh0','C13.Reptile.sh0']])=={'holds'} and 'fails' not in set(first.verdict)
    g = relative_gain(runs, 'chance').groupby(['method','prompt','shots','cluster','seed'], observed=True).gain.mean().groupby(['method','prompt','shots','cluster'], observed=True).agg(['mean','sem']).loc['T+P','deep',16]
    assert len(g)==4 and (g['mean']-2.3*g['sem']>0).all(), 'every cluster is above chance'
