"What a finished table holds is cut, emptied or has a bit turned over: the same call ends with the undamaged table, and names what it kept aside"
import random, shutil, sys
from pathlib import Path
import pytest
from promptbench.engine.folder import gc, list_runs
from promptbench.engine.job import damage_of
from promptbench.engine.pools import make_pool
from promptbench.stats.results import read_predictions, read_rows, write_predictions, write_rows
from promptbench.base.core import UserError
from promptbench.studies.table1 import Settings, finished, run_all
sys.path.insert(0, str(Path(__file__).resolve().parent))
import toy_table as T

KINDS = {'tune-*/rows.parquet': True, 'evaluate-*/predictions.parquet': True, 'tune-*/card.json': True, 'board.json': False,
         '../cells.json': False, '../settings.json': False, 'tune-*/.promptbench.json': False, 'tune-*/log.txt': False}

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    top = tmp_path_factory.mktemp('damaged')
    settings = T.write_toy(top/'made')
    call(settings, top/'whole')
    return settings,top/'whole',T.table(settings, top/'whole')

def call(settings, out): run_all(Settings(**settings), out, pool=make_pool('here'), quiet=True)

def hurt(file:Path, how:str, gen):
    data = bytearray(file.read_bytes())
    if how=='flip': data[gen.randrange(len(data))] ^= 1<<gen.randrange(8)
    file.write_bytes(data if how=='flip' else data[:len(data)//2])

@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('how', ['flip','cut'])
def test_a_damaged_file_costs_one_job(made, tmp_path, capsys, kind, how):
    settings,whole,want = made
    out = Path(shutil.copytree(whole, tmp_path/'out'))
    file = next((out/'jobs').glob(kind)) if '*' in kind else out/'jobs'/kind
    hurt(file, how, random.Random(kind+how))
    call(settings, out)
    assert T.differences(T.table(settings, out), want)==(0,0)
    aside = list((out/'jobs').glob('*.damaged-*'))
    assert len(aside)==KINDS[kind], aside
    if KINDS[kind]:
        said = capsys.readouterr().err
        assert aside[0].name in said and file.name in said
        assert aside[0].name not in [r['key'] for r in list_runs(out/'jobs')], 'what is kept aside counts as no run'
        assert aside[0].name in [r['what'] for r in gc(out/'jobs', dry_run=True)], 'and goes only where it is named'

def test_damaged_weights_are_found_when_a_job_starts_from_them(made, tmp_path):
    settings,whole,want = made
    out = Path(shutil.copytree(whole, tmp_path/'out'))
    weights = next((out/'jobs').glob('pretrain-*/checkpoints/final/backbone/model.safetensors'))
    hurt(weights, 'flip', random.Random(0))
    call(settings, out)
    assert not list((out/'jobs').glob('*.damaged-*')), 'nobody needs them'
    lost = next(f for f in (out/'jobs').glob('tune-*/rows.parquet') if read_rows(f).method.iloc[0]=='T+P')
    shutil.rmtree(lost.parent)
    call(settings, out)
    assert [f.name.split('-')[0] for f in (out/'jobs').glob('*.damaged-*')]==['pretrain']
    assert T.differences(T.table(settings, out), want)==(0,0)

def test_an_edited_table_is_not_finished(made, tmp_path):
    settings,whole,_ = made
    out = Path(shutil.copytree(whole, tmp_path/'out'))
    assert finished(Settings(**settings), out)
    file = next((out/'jobs').glob('tune-*/rows.parquet'))
    write_rows(read_rows(file).assign(value=1.), file) # a whole file, of other numbers
    assert 'rows.parquet is not as it was written' in damage_of(file.parent)
    assert not finished(Settings(**settings), out)

@pytest.mark.parametrize('kind,read,write', [('rows',read_rows,write_rows), ('predictions',read_predictions,write_predictions)])
def test_a_bit_that_turns_over_is_refused_or_changes_nothing(made, tmp_path, kind, read, write):
    "Every 7th byte of a file: no number is ever read that was not written"
    df = read(next((made[1]/'jobs').glob(f'tune-*/{kind}.parquet')))
    file = write(df, tmp_path/f'{kind}.parquet')
    whole,refused = file.read_bytes(),0
    for i in range(0, len(whole), 7):
        data = bytearray(whole)
        data[i] ^= 1<<(i%8)
        file.write_bytes(data)
        try: assert read(file).equals(df), i
        except UserError: refused += 1
    assert refused>20
