"Bad commands, one by one: each ends with one line that says what to do, the exit code that is documented, no traceback, and nothing of anybody's changed"
import json, os, sys
from pathlib import Path
import pytest
from promptbench.base.mend import EXITS
from promptbench.cli import main as cli

@pytest.fixture
def here(tmp_path, monkeypatch):
    "A folder with somebody's work and all kinds of broken files"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PROMPTBENCH_CACHE', str(tmp_path/'.cache'))
    (tmp_path/'thesis').mkdir()
    (tmp_path/'thesis'/'chapter.tex').write_text('years of work')
    for name,data in FILES.items(): (tmp_path/name).write_bytes(data)
    (tmp_path/'damaged').mkdir()
    (tmp_path/'damaged'/'board.json').write_text('{"jobs": [{"stage": 3}]}')
    (tmp_path/'damaged'/'rows.parquet').write_bytes(b'PAR1xxxxPAR1')
    (tmp_path/'begun'/'sweeps'/'a').mkdir(parents=True)
    (tmp_path/'begun'/'sweeps'/'a'/'sweep.json').write_text('{"name"')
    return tmp_path

PAGE = json.dumps(dict(cells=[dict(cell_type='code', id='a', execution_count=None, outputs=[], source='n = 1',
                                   metadata=dict(tags=['parameters']))], metadata={}, nbformat=4, nbformat_minor=5))
FILES = {
    'text.txt': b'just text', 'empty.csv': b'', 'wide.csv': b'a,b\n1,2\n1,2,3,4\n', 'latin.csv': b'caf\xe9,b\n\xe9,1\n',
    'no.ipynb': b'no notebook', 'list.ipynb': b'[]', 'empty.ipynb': b'', 'cells.ipynb': b'{"cells": 3, "nbformat": 4, "nbformat_minor": 5}',
    'syntax.ipynb': PAGE.replace('n = 1', 'n = (').encode(), 'bytes.ipynb': b'\xff\xfe\x00', 'bad.yaml': b'steps: [a', 'list.yaml': b'- a',
    'empty.yaml': b'', 'cut.parquet': b'PAR1xx'}

BAD = [line.split(' ⇒ ') for line in '''
evaluate --n-eval -5 ⇒ --n-eval must be a whole number at least 1
evaluate --n-eval 0 ⇒ --n-eval must be
evaluate --n-eval many ⇒ integer
evaluate --seed -1 ⇒ --seed must be a whole number
evaluate --seed 100000000000000000000000 ⇒ --seed must be a whole number
evaluate --out thesis ⇒ holds chapter.tex; name another folder
evaluate --out . ⇒ must be a folder of its own
evaluate --out text.txt ⇒ must be a folder
evaluate --out / ⇒ must be a folder of its own
evaluate --store thesis ⇒ must be a store or an empty folder
evaluate --store text.txt ⇒ must be a folder
evaluate --device abacus ⇒ device
evaluate --suite thesis ⇒ thesis
evaluate --suite text.txt ⇒ text.txt
evaluate --suite "" ⇒ 
evaluate --backbone thesis ⇒ thesis
evaluate --backbone text.txt ⇒ text.txt
evaluate --checkpoint text.txt ⇒ text.txt
evaluate --checkpoint thesis ⇒ thesis
evaluate --role judge ⇒ role
evaluate --rule median ⇒ rule
evaluate --chat ⇒ chat needs a decoder-only model
evaluate --limit 0 ⇒ --limit must be a whole number at least 1
evaluate --answers some ⇒ answers must be one of ['choices', 'words', 'all']
evaluate --answers words ⇒ has none of --role eval and --answers words; it has 80 train with choices
evaluate --role held --limit 3 ⇒ has none of --role held
evaluate --shots -1 ⇒ --shots must be a whole number at least 0
evaluate --shots 1000 --quick ⇒ 1000 training examples
evaluate --max-new 0 ⇒ --max-new must be a whole number at least 1
table1 --out thesis ⇒ holds chapter.tex; name another folder
table1 --out . ⇒ must be a folder of its own
table1 --out text.txt ⇒ must be a folder
table1 --workers 0 ⇒ --workers must be a whole number at least 1
table1 --workers 1000000 ⇒ --workers must be a whole number
table1 --processes 0 ⇒ --processes must be
table1 --n-eval -1 ⇒ --n-eval must be
table1 --shots -1 ⇒ shots must be a whole number at least 0
table1 --shots 1.5 ⇒ shots must be a comma-separated list of ints
table1 --shots "" ⇒ shots must not be empty
table1 --seeds 0 ⇒ seeds must be a number of seeds
table1 --seeds 99999999999 ⇒ the number of seeds must be
table1 --seeds 1,99999999999999999999999 ⇒ seeds must be a whole number
table1 --methods T+Q ⇒ method must be one of
table1 --scale huge ⇒ scale must be one of
table1 --executor cloud ⇒ executor
table1 --option gpu ⇒ name=value
table1 --match luck ⇒ match must be one of
study nothing ⇒ nothing
study dials -p lr ⇒ name=value
study dials -p colour=red ⇒ colour
study table1 -p colour=red ⇒ colour
study table1 -p tune=5 ⇒ tune must be settings
study dials --out thesis ⇒ holds chapter.tex
study dials --seeds -3 ⇒ seeds must be
study dials --workers -2 ⇒ --workers must be
study dials -p n_eval=-4 ⇒ n_eval must be a whole number
run no.ipynb ⇒ cannot be read as a notebook
run list.ipynb ⇒ list.ipynb
run empty.ipynb ⇒ empty.ipynb
run cells.ipynb ⇒ cells.ipynb
run bytes.ipynb ⇒ bytes.ipynb
run syntax.ipynb ⇒ must be Python
run thesis ⇒ there is no page
run nowhere.ipynb ⇒ there is no page
run "" ⇒ there is no page
run pretrain -p seed=-1 ⇒ seed must be a whole number at least 0
run pretrain -p seed=100000000000000000000000 ⇒ seed must be
run pretrain -p every=0 ⇒ every must be a whole number at least 1
run pretrain -p examples=0 ⇒ examples must be
run pretrain -p changes={"lr":-1} ⇒ lr must be a number above 0
run tune -p lr=-1 ⇒ lr must be a number above 0
run tune -p lr=1e999 ⇒ lr must be
run tune -p shots=-2 ⇒ shots must be
run tune -p n_eval=0 ⇒ n_eval must be
run pretrain --processes 0 ⇒ --processes must be
run suite --out text.txt ⇒ promptbench did not write it
run suite --out thesis ⇒ must be a plain file
run pretrain --device abacus ⇒ device
runs ls --root text.txt ⇒ must be a folder of runs
study dials -p questions=[] --out d ⇒ there must be a question to answer
runs gc --older -3 ⇒ --older must be a number at least 0
runs gc --older nan ⇒ --older must be
runs rm x ⇒ must be the beginning of one key
runs show nothing ⇒ must be the beginning of one key
runs board --root thesis ⇒ has no board.json
runs board --root damaged ⇒ board.json is damaged
sweep ⇒ give the YAML file of a sweep
sweep nowhere.yaml ⇒ nowhere.yaml
sweep thesis ⇒ thesis
sweep bad.yaml ⇒ bad.yaml
sweep list.yaml ⇒ must be a mapping
sweep empty.yaml ⇒ 
sweep --resume --root begun ⇒ is damaged; begin the sweep again
sweep bad.yaml --workers 0 ⇒ must be a whole number at least 1
suites --in nowhere ⇒ --in must be a folder
suites --in text.txt ⇒ --in must be a folder
suites check microworld -n 0 ⇒ --rows must be a whole number at least 1
show thesis ⇒ thesis
show microworld nothing ⇒ nothing
show microworld entail -n -1 ⇒ -n must be a whole number at least 1
show microworld entail --tokenizer thesis ⇒ thesis
results thesis ⇒ thesis
results nowhere ⇒ nowhere
results cut.parquet ⇒ cut.parquet
results damaged ⇒ damaged
results thesis --to text.txt ⇒ promptbench did not write it
arg nowhere.csv ⇒ nowhere.csv
arg thesis ⇒ thesis
arg empty.csv ⇒ 
arg wide.csv ⇒ 
arg latin.csv ⇒ 
arg cut.parquet ⇒ a Parquet file cannot be read
nonsense ⇒ No such command
evaluate --nonsense ⇒ No such option
doctor --device abacus ⇒ device'''.strip('\n').split('\n')]

def typed(line:str)->list[str]:
    words = [w.replace('""', '') for w in line.split(' ')]
    return words

def called(args, monkeypatch, capsys)->tuple[int,str]: # exit code, what standard error says
    monkeypatch.setattr(sys, 'argv', ['promptbench', *args])
    with pytest.raises(SystemExit) as end: cli.main()
    return end.value.code or 0, capsys.readouterr().err

def test_there_are_a_hundred(): assert len(BAD)>=100

@pytest.mark.parametrize('line,words', BAD, ids=[b[0] for b in BAD])
def test_one_line_and_a_code(here, monkeypatch, capsys, line, words):
    before = {n:(here/n).read_bytes() for n in FILES}
    code,err = called(typed(line), monkeypatch, capsys)
    assert code in (1, 2, 3) and code in EXITS and 'Traceback' not in err, err
    assert code==2, err
    said = ' '.join(err.replace('│', ' ').split())
    assert words.strip() in said and len(said)<1500, said
    assert {n:(here/n).read_bytes() for n in FILES}==before
    assert [f.name for f in (here/'thesis').iterdir()]==['chapter.tex']

def test_a_fault_of_ours_keeps_its_traceback(monkeypatch, capsys):
    def fault(*_): raise KeyError('lr')
    monkeypatch.setattr(cli, 'app', fault)
    code,err = called([], monkeypatch, capsys)
    assert code==1 and 'Traceback' in err and 'please report it' in err

@pytest.mark.parametrize('error,code,words', [
    (OSError(28, 'No space left on device', 'runs/x'), 2, 'the disk is full'), (PermissionError(13, 'Permission denied', 'x'), 2, 'permission is denied'),
    (MemoryError(), 3, 'memory ran out'), (RuntimeError('CUDA out of memory'), 3, 'memory ran out'), (RecursionError(), 2, 'too deeply')])
def test_what_the_machine_does_is_one_line(monkeypatch, capsys, error, code, words):
    def fail(*_): raise error
    monkeypatch.setattr(cli, 'app', fail)
    got,err = called([], monkeypatch, capsys)
    assert got==code and words in err and 'Traceback' not in err and err.count('\n')==1

def test_the_help_tells_every_exit_code(capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['promptbench', '--help'])
    with pytest.raises(SystemExit): cli.main()
    said = ' '.join(capsys.readouterr().out.replace('│', ' ').split())
    for code,what in EXITS.items(): assert f'{code} {what}' in said, code
