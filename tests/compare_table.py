"""Does a fresh Table 1 say what the kept one says?  python tests/compare_table.py FOLDER [KEPT]

FOLDER is what `promptbench table1 --scale tiny --methods all --seeds 5 --out FOLDER` wrote. A cell agrees if its ARG lies in the kept interval; ends with 1 if one does not."""
import sys
from pathlib import Path
import pandas as pd
from promptbench.base.core import data_dir

CELL = ['method','prompt','shots']

def compare(fresh:pd.DataFrame, kept:pd.DataFrame)->pd.DataFrame:
    "Every kept cell beside the fresh one, and whether the fresh ARG lies in the kept interval; a cell that is missing does not"
    d = kept[CELL+['arg','lo','hi']].merge(fresh[CELL+['arg']].rename(columns=dict(arg='fresh')), on=CELL, how='left')
    return d.assign(agrees=(d.fresh>=d.lo)&(d.fresh<=d.hi))

if __name__=='__main__':
    kept = Path(sys.argv[2]) if len(sys.argv)>2 else data_dir('results','table1-tiny'); d = compare(pd.read_csv(Path(sys.argv[1])/'table1.csv'), pd.read_csv(kept/'table1.csv'))
    print(d.round(2).to_string(index=False)); print(f'{d.agrees.sum()} of {len(d)} cells lie in the kept intervals'); sys.exit(0 if d.agrees.all() else 1)
