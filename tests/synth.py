"Synthetic results for tests: what a run would leave behind, without any model"
import numpy as np, pandas as pd
from promptbench.stats.results import PREDICTION_COLUMNS, ROW_COLUMNS
from promptbench.stats.metrics import accuracy

DATASETS = [('nli','entail',3,4), ('nli','bank',2,4), ('nli','rounds',3,5), ('completion','cause',2,4), ('completion','scene',4,4),
            ('coreference','who',2,4), ('coreference','fill',2,5), ('word sense','sense',2,4)] # cluster, dataset, choices, templates
SKILL = {('none','none',0):.05, ('none','shallow',16):.02, ('none','deep',16):.12, ('T-only','none',0):.45, ('T-only','shallow',16):.28, ('T-only','deep',16):.48,
         ('P-only','shallow',0):.05, ('P-only','shallow',16):.08, ('T+P','shallow',0):.46, ('T+P','shallow',16):.47, ('T+P','deep',0):.44, ('T+P','deep',16):.6}

def predictions(seeds=(0,1,2), n=150, skill=SKILL, datasets=DATASETS, shared=False, world=0, suite='microworld', backbone='tiny'):
    "Predictions of every cell; `skill` is the share of instances a cell knows, the rest it guesses. Seeds see other instances unless `shared`"
    parts = []
    for seed in seeds:
        for d,(cluster,dataset,choices,templates) in enumerate(datasets):
            gen = np.random.default_rng([world, 0 if shared else seed, d]); hard,gold = gen.random(n),gen.integers(0, choices, n)
            ids = [f'{dataset}/validation{"" if shared else seed}/{i}' for i in range(n)]
            for c,((method,prompt,shots),s) in enumerate(skill.items()):
                for t in range(templates):
                    g = np.random.default_rng([world, seed, d, c, t, 7]); easy = 1.5-.17*d
                    knows = hard+g.normal(0,.15,n) < s*easy+g.normal(0,.03)
                    pred = np.where(knows, gold, g.integers(0, choices, n)); score = g.normal(-4,1,(n,choices)); score[np.arange(n),pred] = score.max(1)+.1
                    parts.append(pd.DataFrame(dict(run=f'{method}-{prompt}-{shots}-{seed}', suite=suite, backbone=backbone, method=method, prompt=prompt, shots=shots, seed=seed,
                        cluster=cluster, dataset=dataset, template=f'{dataset}_{"abcdef"[t]}', instance=ids, gold=gold, pred=pred, correct=pred==gold,
                        scores_sum=list(score*3), scores_mean=list(score))))
    return pd.concat(parts, ignore_index=True)[PREDICTION_COLUMNS]

def rows(preds):
    "The rows that go with `preds`"
    r = accuracy(preds); return r.assign(run=r.method+'-'+r.prompt+'-'+r.shots.astype(str)+'-'+r.seed.astype(str))[ROW_COLUMNS]

def curves(methods=(('T-only','none'),('T+P','shallow'),('T+P','deep'),('P-only','shallow')), seeds=(0,1,2), steps=120, every=4, tasks=0):
    "Loss rows of pretraining, and of few-shot tuning afterwards, there with a curve for each of `tasks` prompts"
    out = []
    for m,(method,prompt) in enumerate(methods):
        for seed in seeds:
            g = np.random.default_rng([m,seed])
            for step in range(0, steps, every):
                out.append(dict(method=method, prompt=prompt, seed=seed, stage='pretrain', step=step, loss=1.1+1.6*np.exp(-step/(25+8*m))+g.normal(0,.04), tokens=step*1700.+m))
            for p in ('shallow','deep') if prompt=='none' else (prompt,):
                for task in [f'task{t}' for t in range(tasks)] or [None]:
                    level = g.normal(0,.25) if task else 0
                    for step in range(0, 100, every):
                        out.append(dict(method=method, prompt=p, seed=seed, stage='tune', step=step, loss=.5+level+.9*np.exp(-step/30)+g.normal(0,.03), task=task))
    return pd.DataFrame(out)

def cards(seeds=(0,1,2)):
    "One card per trained cell, as a run writes them"
    return [dict(stage=stage, method=m, prompt=p, seed=s, updates=u, examples=u*b, tokens=u*b*31, seconds=sec+s, version='0.1.0')
            for s in seeds for stage,m,p,u,b,sec in [('pretrain','T-only','none',312,64,28.), ('pretrain','T+P','shallow',312,64,35.), ('pretrain','T+P','deep',312,64,32.),
                                                     ('pretrain','P-only','shallow',312,64,27.), ('tune','T+P','shallow',100,512,21.), ('tune','T+P','deep',100,512,24.), ('tune','T-only','shallow',100,512,21.), ('tune','T-only','deep',100,512,24.)]]

def settings(**more):
    return dict(command='promptbench table1 --out runs/demo', suite='microworld', backbone='tiny', seeds=[0,1,2], shots=[0,16], instances=150,
                versions=dict(promptbench='0.1.0', torch='2.13.0', transformers='5.0.0', python='3.11.2'), resamples=2000, level=.95)|more
