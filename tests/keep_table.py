"""Put a fresh Table 1 in place of the kept one:  python tests/keep_table.py FOLDER [KEPT]

FOLDER is what `promptbench table1 --scale tiny --methods all --seeds 5 --out FOLDER` wrote. Kept are the rows, the table, the claims on all seeds and on the first alone,
and the settings with what the scale `tiny` stood for; of a suite of one's own its name without the folder, and the predictions, if they take less than a megabyte. README.md of data/results says how it was made; that is for a person to write."""
import json, shutil, sys, tempfile
from dataclasses import replace
from pathlib import Path
from promptbench.base.core import config, data_dir, write_atomic
from promptbench.train.scales import tiny_settings
from promptbench.studies.table1 import Settings, at_scale, finish

def keep(folder:Path, kept:Path):
    "Copy what is kept of a finished table, and judge its first seed alone"
    kept.mkdir(parents=True, exist_ok=True); settings = json.loads((folder/'settings.json').read_text()); s = config(Settings, settings); first = replace(s, seeds=s.seeds[:1])
    for name in ('rows.parquet','table1.csv','claims.csv'): shutil.copyfile(folder/name, kept/name)
    with tempfile.TemporaryDirectory() as tmp:
        (Path(tmp)/'jobs').symlink_to((folder/'jobs').resolve())
        finish(first, tmp); shutil.copyfile(Path(tmp)/'claims.csv', kept/'claims_seed0.csv')
    told = settings|dict(n_eval=at_scale(s, 'n_eval'))
    if s.suite=='microworld': told['frozen'] = tiny_settings()
    else:
        told['suite'] = Path(s.suite).name; predictions = folder/'predictions.parquet'
        if predictions.stat().st_size<1e6: shutil.copyfile(predictions, kept/predictions.name)
    write_atomic(kept/'settings.json', json.dumps(told, indent=1))

if __name__=='__main__': keep(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv)>2 else data_dir('results','table1-tiny'))
