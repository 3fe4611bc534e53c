"Workers of a cluster: by submitit's stand-in everywhere, and on a one-machine Slurm where it can be had"
import os, shutil, signal, socket, subprocess, sys, time
from pathlib import Path
import psutil, pytest
from promptbench.base.core import UserError
from promptbench.engine.folder import read_json
from promptbench.engine.grid import expand
from promptbench.engine.pools import Slurm
from promptbench.engine.run import run
from toy_sweep import Gate, Sweep, complete, differences, table, write_sweep

HERE = Path(__file__).resolve().parent
ONE = 'name: one\nsteps: {first: {page: first.ipynb}}\n'

def cards(root): return [read_json(f) for f in sorted(Path(root).glob('*/card.json'))]

def one_page(tmp_path): return expand(write_sweep(tmp_path/'s', text=ONE))

def drive(pool, jobs, root, gate=None, strike=None):
    "Run jobs to their end; once they stand at the gate `strike` is called, and the second attempt finds the gate open"
    board,struck,end = None,False,time.monotonic()+300
    for board in run(jobs, root, pool):
        assert time.monotonic()<end, board.now
        if strike and not struck and gate.held():
            strike()
            struck = True
        if struck and max(c['attempts'] for c in cards(root))==2: gate.open()
    return board

def children(pool, *, below:bool=False):
    "Processes of submitit that carry a worker, or the workers themselves"
    carriers = [c for h in pool.workers.values() for c in psutil.Process(h._process.pid).children()]
    return [w for c in carriers for w in c.children()] if below else carriers

def is_as_undisturbed(card, jobs, tmp_path, monkeypatch):
    monkeypatch.delenv('TOY_GATE')
    drive(Slurm(1, kind='local'), jobs, tmp_path/'whole')
    (whole,) = cards(tmp_path/'whole')
    return whole['loss']==card['loss'] and whole['attempts']==1

def test_a_preempted_worker_of_the_stand_in_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    gate,root,jobs = Gate(tmp_path/'gate', 2),tmp_path/'runs',one_page(tmp_path)
    monkeypatch.setenv('TOY_GATE', str(gate))
    pool = Slurm(1, kind='local', timeout_min=30)
    board = drive(pool, jobs, root, gate, lambda: [c.send_signal(signal.SIGUSR2) for c in children(pool)])
    (card,) = cards(root)
    assert board.counts()=='1 done' and card['attempts']==2 and 'lost' not in card and pool.made==1, (board.now, card)
    assert not list((root/'.queues').iterdir()), 'the call leaves a queue behind'
    assert is_as_undisturbed(card, jobs, tmp_path, monkeypatch)

def test_a_job_whose_worker_was_killed_is_begun_again_by_another(tmp_path, monkeypatch):
    gate,root,jobs = Gate(tmp_path/'gate', 2),tmp_path/'runs',one_page(tmp_path)
    monkeypatch.setenv('TOY_GATE', str(gate))
    pool = Slurm(1, kind='local', timeout_min=30)
    board = drive(pool, jobs, root, gate, lambda: [p.kill() for p in children(pool, below=True)+children(pool)])
    (card,) = cards(root)
    assert board.counts()=='1 done' and card['attempts']==2 and pool.made==2, (board.now, card)
    assert len(card['lost'])==1 and 'its worker ended with code' in card['lost'][0], card['lost']
    assert is_as_undisturbed(card, jobs, tmp_path, monkeypatch)

def test_a_worker_that_cannot_start_is_not_tried_for_ever(tmp_path):
    pool = Slurm(1, kind='local', device='cuda:77')
    board = drive(pool, one_page(tmp_path), tmp_path/'runs')
    (now,) = board.now.values()
    assert now['state']=='failed' and pool.made==3, (board.now, pool.made)
    assert 'no worker came up, the last 3 were lost' in now['note'] and 'cuda:77 must be on this machine' in now['note']

@pytest.fixture
def fake(tmp_path, monkeypatch):
    "Commands of Slurm that say what a test wants"
    place = tmp_path/'bin'
    place.mkdir()
    def say(command, text):
        (place/command).write_text(f'#!/bin/sh\n{text}\n')
        (place/command).chmod(0o755)
    for command in ('sbatch','srun','squeue','scancel'): say(command, 'exit 0')
    monkeypatch.setenv('PATH', f'{place}{os.pathsep}{os.environ["PATH"]}')
    return say

def test_a_controller_that_does_not_answer_is_one_line(tmp_path, fake, capfd):
    error = 'sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)'
    fake('sbatch', f'echo "{error}" >&2; exit 1')
    file = write_sweep(tmp_path/'s', text=ONE)
    code,said = complete(file, tmp_path/'runs', '--executor', 'slurm')
    assert code==2 and 'Traceback' not in said, said
    assert 'promptbench: Slurm must take jobs from here' in said and error in said and '--executor local' in said, said
    assert not list((tmp_path/'runs'/'.queues').iterdir())

class Handle:
    def __init__(self, folder, job_id):
        self.job_id,self.paths = job_id,self
        self.result_pickle,self.stderr = folder/f'{job_id}.pkl',folder/f'{job_id}.err'

def test_what_slurm_says_of_a_worker(tmp_path, fake):
    pool,w = Slurm(1),Handle(tmp_path, '7_0')
    pool.workers,pool.every = {'worker-1':w},0
    fake('squeue', 'exit 1')
    assert all(pool.alive(w) for _ in range(9)), 'a controller that is busy is no loss'
    fake('squeue', 'echo 7_0 PENDING')
    assert pool.alive(w)
    fake('squeue', 'echo 8_0 RUNNING')
    assert [pool.alive(w) for _ in range(3)]==[True,True,False], 'what Slurm does not know, three times, is gone'
    fake('squeue', 'echo 7_0 RUNNING')
    assert pool.alive(w)
    fake('squeue', 'echo 7_0 NODE_FAIL')
    w.stderr.write_text('Traceback\nOSError: no such thing\n\n')
    assert not pool.alive(w)
    assert pool.fate(w)=='its worker left Slurm as NODE_FAIL, and its log ends with: OSError: no such thing'
    fake('squeue', 'exit 1')
    assert not pool.alive(w), 'what it said before holds'
    pool.every = 60
    fake('squeue', 'echo 7_0 RUNNING')
    assert not pool.alive(w), 'it is not asked more often than need be'

LIVES = [(dict(),90,3480), (dict(timeout_min=2),30,80), (dict(slurm_signal_delay_s=300),300,3200)]

@pytest.mark.parametrize('given,warning,seconds', LIVES)
def test_a_worker_stops_taking_jobs_before_its_end(given, warning, seconds):
    pool = Slurm(1, kind='local', **given)
    assert (pool.parameters['slurm_signal_delay_s'], pool.seconds)==(warning, seconds)
    with pytest.raises(UserError, match='timeout_min must be whole minutes'): Slurm(1, kind='local', timeout_min=0)

# on a real node

def has_slurm()->bool: return all(map(shutil.which, ('sbatch','slurmctld','slurmd','munged')))

def install():
    env = dict(os.environ, DEBIAN_FRONTEND='noninteractive')
    line = 'apt-get install -y -qq --no-install-recommends slurm-wlm munge'
    subprocess.run(line, shell=True, env=env, capture_output=True, timeout=120)

@pytest.fixture(scope='module')
def node(tmp_path_factory):
    "A machine that is a whole cluster; skipped where Slurm is missing and may not be installed"
    if sys.platform!='linux' or os.geteuid(): pytest.skip('a one-machine Slurm needs Linux and root')
    if not has_slurm() and shutil.which('apt-get'): install()
    if not has_slurm(): pytest.skip('no Slurm here: install slurm-wlm and munge to run this test')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    place = tmp_path_factory.mktemp('slurm')
    env = dict(os.environ, SLURM_NODE_PORT=str(port if port<65000 else 16817))
    command = lambda what: ['bash', str(HERE/'slurm_node.sh'), what, str(place)]
    up = subprocess.run(command('up'), env=env, capture_output=True, text=True)
    try:
        if up.returncode: pytest.skip(f'Slurm does not start here: {(up.stdout+up.stderr)[-600:]}')
        yield place/'slurm.conf'
    finally: subprocess.run(command('down'), capture_output=True)

@pytest.fixture
def slurm(node, monkeypatch):
    "The node, with nothing in its queue before and after"
    monkeypatch.setenv('SLURM_CONF', str(node))
    yield node
    subprocess.run(['scancel','--me'], capture_output=True)
    until(lambda: not ids())

def ask(*command): return subprocess.run(command, capture_output=True, text=True).stdout.split()
def ids(state='all'): # of what is not over yet
    which = ['-t',state] if state!='all' else []
    return ask('squeue','-h','-r','--me',*which,'-o','%i')

def until(what, seconds:float=120.):
    end = time.monotonic()+seconds
    while not (got := what()):
        assert time.monotonic()<end, 'nothing happened'
        time.sleep(.1)
    return got

def at_once(job_id): # Slurm would hold what was requeued for two minutes
    subprocess.run(['scontrol','update',f'JobId={job_id}','StartTime=now'], check=True)

@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    "What the toy sweep comes to without a cluster; a second seed is in it, for those who ask for two"
    place = tmp_path_factory.mktemp('whole')
    code,out = complete(write_sweep(place/'s', seeds=2), place/'runs')
    assert code==0, out
    def wanted(seeds=1): return tuple(d[d.seed<seeds].reset_index(drop=True) for d in table(place/'runs'))
    return wanted

SLURM = ('--executor','slurm','--option','timeout_min=60')

# Those that take the node apart, or a minute each: PROMPTBENCH_TEST_SLURM=all python run.py test tests/test_slurm.py
by_hand = pytest.mark.skipif(os.environ.get('PROMPTBENCH_TEST_SLURM')!='all', reason='run by hand: PROMPTBENCH_TEST_SLURM=all')

@pytest.mark.slow
def test_a_sweep_on_slurm_with_a_preemption(slurm, tmp_path, undisturbed):
    gate,root,file = Gate(tmp_path/'gate', 2),tmp_path/'runs',write_sweep(tmp_path/'s')
    with Sweep(file, root, *SLURM, gate=gate, jobs=3) as s:
        s.wait(lambda: len(gate.held())==3)
        running = ids('RUNNING')
        assert len(running)==3 and all('_' in i for i in running), f'not an array: {running}'
        subprocess.run(['scancel','--signal=USR2', running[0]], check=True)
        s.wait(lambda: running[0] in ids('PENDING')) # back in the queue, as itself
        assert any(c['state']=='resumable' for c in cards(root)), 'no checkpoint was asked for'
        at_once(running[0])
        gate.open()
        code,out = s.end()
    assert code==0, out
    assert max(c['attempts'] for c in cards(root))==2 and not any('lost' in c for c in cards(root))
    assert differences(table(root), undisturbed())==(0,0)
    assert not list((root/'.queues').iterdir()), 'the call leaves a queue behind'

@pytest.mark.slow
def test_a_table_on_slurm_is_the_local_one(slurm, tmp_path):
    from promptbench.stats.results import read_rows
    from promptbench.studies.study import jobs_in
    small = ['--scale','quick','--methods','none,T+P','--prompts','shallow','--shots','0,4','--n-eval','6']
    small += ['--precision','fp32','--workers','2']
    def rows(name, *more):
        call = [sys.executable,'-m','promptbench.cli.main','table1',*small,'--out',str(tmp_path/name),*more]
        env = dict(os.environ, PROMPTBENCH_QUIET='1', OMP_NUM_THREADS='1')
        done = subprocess.run(call, env=env, capture_output=True, text=True)
        assert done.returncode==0, done.stdout+done.stderr
        got = read_rows(sorted(jobs_in(tmp_path/name).glob('*/rows.parquet')))
        return got.sort_values(list(got.columns[:-1])).reset_index(drop=True)
    got,want = rows('slurm', '--executor', 'slurm'),rows('local')
    assert len(want)>4 and got.equals(want)

def taken(root)->dict: # key -> worker
    return {f.name.split('-', 2)[2][:-5]:f.parent.name for f in Path(root).glob('.queues/*/taken/*/[!.]*.json')}

def on_the_node(sweep)->list: # of (id, process)
    "What runs of a sweep under Slurm"
    return [(p.environ().get('SLURM_JOB_ID'), p) for p in sweep.family() if 'SLURM_JOB_ID' in p.environ()]

def kill_a_worker(sweep):
    "End all processes of a worker that holds a ticket, as if its machine had lost its power"
    job_id,_ = on_the_node(sweep)[0]
    for i,p in on_the_node(sweep):
        if i==job_id: p.kill()

def cancel_a_worker(sweep):
    "What somebody does who wants the machine back: Slurm sends SIGTERM and, some time later, SIGKILL"
    subprocess.run(['scancel', ids('RUNNING')[0]], check=True)

@pytest.mark.slow
@pytest.mark.parametrize('strike,reasons', [(kill_a_worker,1), pytest.param(cancel_a_worker, 0, marks=by_hand)])
def test_a_worker_lost_on_slurm_costs_one_attempt(slurm, tmp_path, undisturbed, strike, reasons):
    gate,root,file = Gate(tmp_path/'gate', 2),tmp_path/'runs',write_sweep(tmp_path/'s')
    with Sweep(file, root, *SLURM, gate=gate) as s:
        s.wait(lambda: len(gate.held())==2)
        strike(s)
        s.wait(lambda: [c for c in cards(root) if c['attempts']==2])
        gate.open()
        code,out = s.end()
    assert code==0, out
    (struck,) = [c for c in cards(root) if c['attempts']>1]
    assert struck['attempts']==2 and len(struck.get('lost', ()))==reasons, struck
    assert all('its worker left Slurm as FAILED' in why for why in struck.get('lost', ())), struck
    assert differences(table(root), undisturbed())==(0,0)

def set_node(state):
    host = socket.gethostname().split('.')[0]
    subprocess.run(['scontrol','update',f'NodeName={host}',f'State={state}','Reason=test'], check=True)

def power_off(sweep, conf):
    "Slurm's daemon, what it watches with, and all it runs of a sweep are gone at one moment"
    there = [p for _,p in on_the_node(sweep)]
    watching = {q for p in there for q in p.parents() if q.name()=='slurmstepd'}
    gone = [psutil.Process(int((conf.parent/'slurmd.pid').read_text())), *watching, *there]
    for p in gone: p.suspend() # so that none can tell of the others
    for p in gone: p.kill()
    set_node('DOWN')

def power_on(conf):
    subprocess.run(['slurmd','-f',str(conf)], check=True)
    until(lambda: not set(ask('sinfo','-h','-o','%T')) & {'down*','unknown','unknown*'})
    if ask('sinfo','-h','-o','%T')==['down']: set_node('RESUME')
    until(lambda: ask('sinfo','-h','-o','%T')[0] in ('idle','mixed','allocated'))

@by_hand
@pytest.mark.slow
def test_a_node_that_goes_down_gives_its_jobs_back_when_slurm_starts_the_workers_again(slurm, tmp_path, undisturbed):
    gate,root,file = Gate(tmp_path/'gate', 2),tmp_path/'runs',write_sweep(tmp_path/'s')
    with Sweep(file, root, *SLURM, gate=gate) as s:
        s.wait(lambda: len(gate.held())==2)
        before,held = sorted(ids('RUNNING')),taken(root)
        try:
            power_off(s, slurm)
            s.wait(lambda: sorted(ids('PENDING'))==before) # Slurm itself queues them again
        finally: power_on(slurm)
        assert taken(root)==held
        gate.open()
        for job_id in before: at_once(job_id)
        code,out = s.end()
    assert code==0, out
    why = [why for c in cards(root) for why in c.get('lost', ())]
    gone = [w for w in why if w=='the machine of its worker was lost, or wanted back at once']
    assert len(gone)==2, cards(root)
    assert all('left Slurm as FAILED' in w for w in why if w not in gone), why # what a watcher told before it was gone itself
    assert differences(table(root), undisturbed())==(0,0)

@by_hand
@pytest.mark.slow
def test_a_worker_whose_time_is_up_makes_room_for_another(slurm, tmp_path, monkeypatch):
    monkeypatch.setattr(Slurm, 'seconds', 1.)
    pool,root,jobs = Slurm(1),tmp_path/'runs',expand(write_sweep(tmp_path/'s'))
    board = drive(pool, jobs, root)
    assert board.counts()=='5 done' and pool.made==5, (board.now, pool.made)
    assert not any('lost' in c for c in cards(root)) and not list((root/'.queues').iterdir())

@by_hand
@pytest.mark.slow
def test_ctrl_c_empties_the_queue_of_slurm_and_the_same_call_goes_on(slurm, tmp_path, undisturbed):
    gate,root,file = Gate(tmp_path/'gate', 2),tmp_path/'runs',write_sweep(tmp_path/'s', seeds=2)
    wide = (*SLURM,'--option',f'cpus_per_task={len(os.sched_getaffinity(0))}') # the node runs four of these at once
    with Sweep(file, root, *wide, gate=gate, jobs=6) as s:
        s.wait(lambda: len(gate.held())==4 and len(ids('PENDING'))==2)
        s.process.send_signal(signal.SIGINT)
        code,out = s.end()
    assert code==130 and 'the same command goes on' in out, out
    until(lambda: not ids(), 30)
    assert [c['state'] for c in cards(root)]==['resumable']*4
    gate.open()
    code,out = complete(file, root, *SLURM)
    assert code==0 and differences(table(root), undisturbed(2))==(0,0), out
    assert sum(c['attempts']==2 for c in cards(root))==4

@by_hand
@pytest.mark.slow
def test_workers_outlive_a_killed_call_and_a_second_call_shares_the_work(slurm, tmp_path, undisturbed):
    gate,root,file = Gate(tmp_path/'gate', 2),tmp_path/'runs',write_sweep(tmp_path/'s')
    with Sweep(file, root, *SLURM, gate=gate) as s:
        s.wait(lambda: len(gate.held())==2)
        s.kill()
        with Sweep(file, root, *SLURM) as second: # its workers hold at no gate
            second.wait(lambda: sum(c['state']=='done' for c in cards(root))>=1)
            gate.open()
            code,out = second.end()
    assert code==0, out
    assert all(c['attempts']==1 for c in cards(root)) and len(cards(root))==5, 'something was computed twice'
    assert differences(table(root), undisturbed())==(0,0)
    until(lambda: not ids(), 30)

def test_importing_submitit_leaves_what_others_log_as_it_is(tmp_path):
    "Its own set-up of logging would close every handler of the process: a log file, and the stream of whoever closes its streams"
    code = ('import logging, sys\n'
            'from promptbench.engine.pools import Slurm\n'
            'class Closing(logging.StreamHandler):\n'
            '    def close(self):\n'
            '        self.stream.close()\n'
            'kept = Closing(open(sys.argv[1], "w"))\n'
            'Slurm(1, kind="local")\n'
            'assert "submitit" in sys.modules\n'
            'print(kept.stream.closed)')
    said = subprocess.run([sys.executable, '-c', code, str(tmp_path/'x.log')], capture_output=True, text=True)
    assert said.stdout.strip()=='False', said.stdout+said.stderr
