"""Coverage-guided fuzzing of everything that reads what strangers send: `python tests/fuzz/fuzz.py TARGET --seconds 20`

Whatever bytes come, a reader gives rows or text, or raises UserError; any other exception, a crash, a hang or more than 2 GB is a find.
"""
import argparse, os, sys, tempfile
from pathlib import Path
import atheris

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
os.environ.update(PROMPTBENCH_MAX_FILE='3e7', PROMPTBENCH_QUIET='1')
with atheris.instrument_imports(include=['promptbench.data','promptbench.base','promptbench.engine.grid','promptbench.stats.scores','jinja2','yaml','google.protobuf']):
    from promptbench.base.core import UserError
    from promptbench.data import files, sandbox, templates, tfrecord
    from promptbench.engine import grid
    from promptbench.stats import scores

RECORD = dict(text='A fine film.', label=1, choices=['no','yes'], facts=[dict(title='a', n=1), dict(title='b', n=2)], rate=.5, none=None)
FOLDER = Path(tempfile.mkdtemp(prefix='fuzz-'))

def _file(data:bytes, ending:str)->Path:
    path = FOLDER/f'a{ending}'
    path.write_bytes(data)
    return path

def _rows(data:bytes, ending:str):
    "All rows, once so that a flaw raises and once so that it is noted"
    path,flaws = _file(data, ending),[]
    for row in files.read_records(path, flaws.append): assert isinstance(row, dict)
    for _ in files.read_records(path): pass

def sandboxed(data:bytes):
    text,_,choices = data.decode('utf8', 'replace').partition('\x01')
    t = templates.Template('t', text+' ||| {{choices[label]}}', choices or None)
    try: t.apply(RECORD)
    finally: assert RECORD['choices']==['no','yes'] and len(RECORD)==6, 'a template changed the record'

def yaml_of_templates(data:bytes):
    for t in templates.read_templates(_file(data, '.yaml')): t.apply(RECORD)

def jsonl(data:bytes): _rows(data, '.jsonl')
def gz(data:bytes): _rows(data, '.jsonl.gz')
def csv(data:bytes): _rows(data, '.csv')
def parquet(data:bytes): _rows(data, '.parquet')

def tfrecords(data:bytes):
    "Bytes as a file, and as the one record of a file whose checksums are right"
    for i,content in enumerate((data, tfrecord.frame(data))):
        try:
            rows = tfrecord.TFRecords([_file(content, f'.{i}')])
            for row in rows: assert isinstance(row, dict)
            if len(rows): rows.fingerprint, rows.columns
        except UserError: pass

def sweep(data:bytes): grid.grid(grid.read_sweep(_file(data, '.sweep')))
def score_table(data:bytes): scores.read_scores(_file(data, '.csv'))

TARGETS = dict(sandbox=sandboxed, templates=yaml_of_templates, jsonl=jsonl, gz=gz, csv=csv, parquet=parquet, tfrecord=tfrecords, grid=sweep, scores=score_table)

def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument('target', choices=TARGETS)
    args.add_argument('--seconds', type=int, default=20)
    args.add_argument('--runs', type=int, default=0, help='so many inputs instead of so many seconds, the same ones every time')
    args.add_argument('--keep', type=Path, help='folder where inputs that reach new code are kept')
    given = args.parse_args()
    def one(data:bytes):
        try: TARGETS[given.target](data)
        except UserError: pass
    new = given.keep or tempfile.mkdtemp(prefix=f'new-{given.target}-')   # libFuzzer writes into the first folder it is given
    how = [f'-runs={given.runs}','-seed=1'] if given.runs else [f'-max_total_time={given.seconds}']
    crashes = tempfile.mkdtemp(prefix=f'found-{given.target}-')
    flags = ['-timeout=20','-rss_limit_mb=6144','-max_len=4096','-verbosity=0',f'-artifact_prefix={crashes}/']
    atheris.Setup([sys.argv[0], *how, *flags, str(new), str(HERE/'corpus'/given.target)], one)
    atheris.Fuzz()

if __name__=='__main__': main()
