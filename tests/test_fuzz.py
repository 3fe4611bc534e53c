"Every reader of what strangers send, on a fixed number of inputs that a fuzzer makes up, and on all that was ever found"
import subprocess, sys
from pathlib import Path
import pytest
HERE = Path(__file__).resolve().parent/'fuzz'
RUNS = dict(sandbox=400, templates=300, jsonl=1500, gz=1500, csv=600, parquet=600, tfrecord=1500, grid=400, scores=300)

@pytest.mark.parametrize('target', RUNS)
def test_only_user_errors(target, tmp_path):
    pytest.importorskip('atheris')
    ran = subprocess.run([sys.executable, str(HERE/'fuzz.py'), target, '--runs', str(RUNS[target])], cwd=tmp_path, capture_output=True, text=True, errors='replace')
    assert ran.returncode==0, ran.stderr[-3000:]

def test_every_target_has_a_corpus_and_it_is_small():
    files = [f for f in (HERE/'corpus').rglob('*') if f.is_file()]
    assert {f.parent.name for f in files}==set(RUNS) and sum(f.stat().st_size for f in files)<100_000
