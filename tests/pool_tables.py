"""Several Table 1 folders as one, judged with runs resampled:  python tests/pool_tables.py KEPT FOLDER FOLDER ...

Each FOLDER is what `promptbench table1 --out FOLDER` wrote, for one backbone. A seed on a backbone counts as one run; intervals are made by drawing runs and
instances with replacement, so they say what another seed or another backbone of the kind might give. Methods that are not in every folder are left out."""
import sys
from pathlib import Path
import pandas as pd
from promptbench.stats.bootstrap import replicate, interval_table
from promptbench.stats.claims import judge, write_claims
from promptbench.base.core import write_atomic
from promptbench.stats.results import read_predictions, read_rows

def pool(folders):
    "Rows and predictions of all folders under the first one's backbone; the seeds of the second folder count from 100, and so on"
    parts = [(read_rows(f/'rows.parquet'), read_predictions(f/'predictions.parquet')) for f in folders]
    common = set.intersection(*(set(r.method) for r,_ in parts)); name = parts[0][0].backbone.iloc[0]
    assert len({r.backbone.iloc[0] for r,_ in parts})==len(parts), 'every folder must have a backbone of its own'
    of = lambda d, i: d[d.method.isin(common)].assign(seed=lambda d: d.seed+100*i, backbone=name)
    return tuple(pd.concat([of(p[k], i) for i,p in enumerate(parts)], ignore_index=True) for k in (0,1))

def judged(rows, predictions, n:int=2000):
    "Table and claims, with runs and instances resampled"
    r = replicate(predictions, rows=rows, n=n)
    return interval_table(rows, predictions, methods=list(dict.fromkeys(rows.method)), prompts=('shallow','deep'), shots=sorted(set(rows.shots)), replicates=r, seeds='resampled'), judge(rows, predictions, replicates=r, seeds='resampled')

if __name__=='__main__':
    kept,folders = Path(sys.argv[1]),[Path(f) for f in sys.argv[2:]]; rows,predictions = pool(folders); table,claims = judged(rows, predictions); kept.mkdir(parents=True, exist_ok=True)
    write_atomic(kept/'table1.csv', table[['method','prompt','shots','arg','lo','hi','seeds']].to_csv(index=False, float_format='%.4f')); write_claims(claims, kept/'claims.csv')
    print(table.round(1).to_string(index=False)); print(claims[claims.verdict!='not run'][['claim','verdict','estimate','lo','hi','text']].round(1).to_string(index=False))
