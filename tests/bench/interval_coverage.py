"""Do 95 % intervals contain the truth 95 times in 100? Simulated studies with a known true difference, judged by the code that judges real ones.

A study has 9 datasets of 56 to 1,000 instances with several templates each. An answer is right if skill + how easy the instance is + what the method finds easy
about it + what the wording does to it + noise is above 0, or by guessing; so templates of a dataset are correlated within instances, and methods are too.
`python tests/bench/interval_coverage.py` takes about two minutes on one core and writes data/results/coverage.csv, which the page on uncertainty plots."""
import csv, io, sys, time
from pathlib import Path
from statistics import NormalDist
sys.path.insert(0, str(Path(__file__).resolve().parent))
import numpy as np
import common
from promptbench.stats.resample import Block, _block_draws
from promptbench.stats.intervals import acceleration, interval, p_value
from promptbench.stats.wu2022 import wu_draws

# instances, choices, templates, skill above 0 = better than guessing most of the time
DESIGN = [(56,3,5,.4), (100,2,6,.2), (104,2,5,-.4), (277,2,5,.1), (400,4,4,-.3), (638,2,5,-.4), (1000,3,5,-.8), (1000,2,5,.7), (1000,2,4,-.35)]
EASY,TASTE,WORDING = .7,.5,.5 # Spread between instances, between methods on an instance, between wordings on an instance
TOTAL = np.sqrt(1+EASY**2+TASTE**2+WORDING**2); CDF = np.vectorize(NormalDist().cdf, otypes=[float])
SHIFT = lambda T: np.linspace(-.15, .15, T)
OUT = Path(__file__).resolve().parents[2]/'data'/'results'/'coverage.csv'

def chance_right(skill, choices): return 1/choices+(1-1/choices)*CDF(np.asarray(skill)/TOTAL)

def answers(gen, S, size, choices, skill_mST):
    "Right answers [methods, S, templates, instances] of S studies on one dataset"
    f = np.float32; skill_mST = np.asarray(skill_mST, f); m,_,T = skill_mST.shape; normal = lambda *shape: gen.standard_normal(shape, dtype=f)
    easy,taste,wording = EASY*normal(1,S,1,size),TASTE*normal(m,S,1,size),WORDING*normal(1,S,T,size)
    return (skill_mST[...,None]+easy+taste+wording+normal(m,S,T,size)>0)|(gen.random((m,S,T,size), dtype=f)<1/choices)

def judged(est, draws, share, truth, kinds=('bca','percentile')):
    "Which studies' intervals miss the truth below and above, and which p-values are at most 0.05, per kind"
    a = np.array([acceleration([s[:,k] for s in share]) for k in range(len(est))]) if 'bca' in kinds else None; out = {}
    for kind in kinds:
        how = dict(kind=kind, acceleration=a) if kind=='bca' else dict(kind=kind); lo,hi = interval(draws, est, **how)
        out[kind] = (hi<truth, lo>truth, p_value(draws, est, **how)<=.05)
    return out

def paired(seed, S, B, effects, design, single=False):
    "S studies of two methods (or of one, `single`) under instance resampling, and under the paper's procedure"
    gen = np.random.default_rng([seed,1]); est,draws,share,wu,truth = np.zeros(S),np.zeros((S,B)),[],[],0.
    for d,((n,c,T,skill),effect) in enumerate(zip(design, effects)):
        s = np.stack([np.broadcast_to(skill+e+SHIFT(T), (S,T)) for e in ((effect,) if single else (effect,0))]); ok = answers(gen, S, n, c, s); factor = 100*c/len(design)
        p = [chance_right(x[0], c).mean() for x in s]; truth += factor*(p[0]-(1/c if single else p[1])); mean = ok.mean(2, dtype=np.float64); x_SN = mean[0] if single else mean[0]-mean[1]
        b = Block('', f'd{d}', np.arange(n), x_SN, np.ones((S,n), bool), np.arange(S)); const = factor/c if single else 0.
        draws += _block_draws(b, np.eye(S)*factor, B, np.random.default_rng([seed,2,d])).T-const; est += factor*x_SN.mean(1)-const; share.append(factor*(x_SN-x_SN.mean(1, keepdims=True)).T/n)
        if not single: wu.append((ok[0].sum(-1)-ok[1].sum(-1), np.full(T, n), np.full(T, factor/T)))
    out = judged(est, draws, share, truth)
    if wu:
        more,size,coef = np.concatenate([w[0] for w in wu], 1),np.concatenate([w[1] for w in wu]),np.concatenate([w[2] for w in wu]); lo,hi,p,fixed = (np.zeros(S) for _ in range(4))
        for k in range(S):
            x = wu_draws(more[k], size, coef, B, np.random.default_rng([seed,3,k])); lo[k],hi[k] = interval(x, est[k], kind='percentile'); p[k],fixed[k] = (x*np.sign(est[k])<0).mean(),(x<0).mean()
        out['wu2022'],out['wu2022, direction fixed'] = (hi<truth, lo>truth, p<.05),(hi<truth, lo>truth, fixed<.05) # the paper puts the better model first
    return out

def wordings(seed, S, B, design, spread=.25):
    "S null studies whose templates are a sample too: each method finds some wordings easier. The truth is the mean over all wordings there could be"
    gen = np.random.default_rng([seed,4]); est,both,only,share = np.zeros(S),np.zeros((S,B)),np.zeros((S,B)),[]
    for d,(n,c,T,skill) in enumerate(design):
        ok = answers(gen, S, n, c, skill+spread*gen.standard_normal((2,S,T))); x = (ok[0].astype(np.float64)-ok[1]).reshape(S*T,n); factor = 100*c/len(design)/T
        b = Block('', f'd{d}', np.arange(n), x, np.ones((S*T,n), bool), np.arange(S*T)); coef = np.zeros((S*T,S)); coef[np.arange(S*T),np.arange(S*T)//T] = factor
        times = np.random.default_rng([seed,5,d]).multinomial(T, np.full(T, 1/T), B); est += x.mean(1)@coef
        both += _block_draws(b, coef, B, np.random.default_rng([seed,6,d]), np.tile(times, (1,S))).T; only += _block_draws(b, coef, B, np.random.default_rng([seed,7,d])).T
    return dict(percentile=judged(est, only, share, 0., ('percentile',))['percentile'], hierarchical=judged(est, both, share, 0., ('percentile',))['percentile'])

SMALL = [(20,c,T,s+1.2) for _,c,T,s in DESIGN]
SCENARIOS = { # name: (what it is, function of a seed, S and B)
    'no difference': lambda seed,S,B: paired(seed, S, B, [0]*9, DESIGN),
    'better here, worse there, equal overall': lambda seed,S,B: paired(seed, S, B, balanced(), DESIGN),
    'true difference': lambda seed,S,B: paired(seed, S, B, [.3,-.1,.2,0,.1,-.1,0,.1,.05], DESIGN),
    'one method, 20 instances, skilled': lambda seed,S,B: paired(seed, S, B, [0]*9, SMALL, single=True),
    'no difference, templates are a sample': lambda seed,S,B: wordings(seed, max(1,S//4), B, DESIGN)}

def balanced():
    "Effects that differ between datasets and cancel exactly in ARG: the last one is solved for"
    e = [.3,-.2,.2,-.2,.1,-.1,.1,0.]; gain = lambda k,x: DESIGN[k][1]*(chance_right(DESIGN[k][3]+x+SHIFT(DESIGN[k][2]), DESIGN[k][1]).mean()-chance_right(DESIGN[k][3]+SHIFT(DESIGN[k][2]), DESIGN[k][1]).mean())
    rest = sum(gain(k, x) for k,x in enumerate(e)); lo,hi = -2.,2.
    for _ in range(50):
        mid = (lo+hi)/2; lo,hi = (lo,mid) if gain(8, mid)+rest>0 else (mid,hi)
    return e+[lo]

def simulate(name, studies, B=1000, batch=250, seed=0):
    "Rows of one scenario: procedure, share of intervals that contain the truth, misses on either side, share of p at most 0.05"
    parts = [SCENARIOS[name]((seed*1000+k), min(batch, studies-start), B) for k,start in enumerate(range(0, studies, batch))]; rows = []
    for procedure in parts[0]:
        below,above,reject = (np.concatenate([p[procedure][i] for p in parts]) for i in range(3))
        rows.append(dict(scenario=name, procedure=procedure, studies=len(below), covered=round(1-float((below|above).mean()), 4), too_low=round(float(below.mean()), 4), too_high=round(float(above.mean()), 4), p_at_most_5=round(float(reject.mean()), 4)))
    return rows

def main():
    small = common.small(); studies,B = (40,200) if small else (4000,1000); start = time.perf_counter(); rows = []
    for name in SCENARIOS:
        t = time.perf_counter(); rows += simulate(name, studies, B); print(f'{name}: {time.perf_counter()-t:.1f} s')
        for r in rows:
            if r['scenario']==name: print('   ', {k:v for k,v in r.items() if k!='scenario'})
    if not small and common.options().record:
        sink = io.StringIO(); w = csv.DictWriter(sink, rows[0], lineterminator='\n'); w.writeheader(); w.writerows(rows); OUT.write_text(sink.getvalue())
    at = {(r['scenario'],r['procedure']):r for r in rows}; ours = [at[s,'bca'] for s in list(SCENARIOS)[:3]]; null = [at[s,'bca'] for s in list(SCENARIOS)[:2]]
    common.report('interval_coverage', None, None, unit='', seconds=time.perf_counter()-start, cpu_s=time.process_time(), studies=studies, resamples=B, covered=[r['covered'] for r in ours], covered_percentile=[at[s,'percentile']['covered'] for s in list(SCENARIOS)[:3]],
                  type_1=[r['p_at_most_5'] for r in null], type_1_wu2022=[at[s,'wu2022']['p_at_most_5'] for s in list(SCENARIOS)[:2]], type_1_wu2022_fixed=[at[s,'wu2022, direction fixed']['p_at_most_5'] for s in list(SCENARIOS)[:2]], within=all(.93<=r['covered']<=.97 for r in ours) and all(.035<=r['p_at_most_5']<=.065 for r in null), rows=rows)

if __name__=='__main__': main()
