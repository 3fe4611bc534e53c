"Executors: nothing outlives the sweep, a lost worker is begun again, a preempted job goes on; once on a real Slurm"
import os, shutil, signal, socket, subprocess, sys, time
from pathlib import Path
import psutil, pytest
from promptbench.engine.folder import read_json
from promptbench.engine.grid import expand
from promptbench.engine.pools import Slurm
from promptbench.engine.run import run
from toy_sweep import Gate, Sweep, complete, differences, table, write_page, write_sweep

HERE = Path(__file__).resolve().parent
ONE = 'name: one\nsteps: {first: {page: first.ipynb}}\n'

def card(root): (f,) = Path(root).glob('*/card.json'); return read_json(f)

def test_a_killed_worker_is_begun_again_and_nothing_outlives_the_sweep(tmp_path):
    file = write_sweep(tmp_path/'s', text=ONE); gate = Gate(tmp_path/'gate', 2); root = tmp_path/'runs'
    with Sweep(file, root, gate=gate, jobs=1) as s:
        s.wait(gate.held); (worker,) = s.workers(); assert worker.environ()['TOY_MARK']==s.mark
        worker.kill(); s.wait(lambda: (root/card(root)['key']/'card.json').exists() and card(root)['attempts']==2)
        s.wait(lambda: [k for k in s.kernels()]); family = s.family(); assert len(family)>=4, family    # sweep, fork server, worker, kernel
        s.kill(); gate.open(); assert s.gone(), s.family()
    assert card(root)['state']=='running'
    code,said = complete(file, root, jobs=1); assert code==0 and card(root)['state']=='done' and card(root)['attempts']==3, said

def drive(executor, runs, root, gate, preempt):
    "Run a sweep to its end; `preempt` is called once, when the run stands at its gate"
    now,struck,end = {},False,time.monotonic()+300
    for board in run(runs, root, executor):
        now = board.now
        assert time.monotonic()<end, now
        if not struck and gate.held(): preempt(); struck = True
        if struck and card(root)['attempts']==2: gate.open()
    return now

def test_submitit_without_a_cluster_preempted(tmp_path, monkeypatch):
    gate = Gate(tmp_path/'gate', 2); monkeypatch.setenv('TOY_GATE', str(gate)); root = tmp_path/'runs'; runs = expand(write_sweep(tmp_path/'s', text=ONE)); ex = Cluster(root, kind='local', timeout_min=30)
    try: now = drive(ex, runs, root, gate, lambda: [c.send_signal(signal.SIGUSR2) for j in ex.jobs.values() for c in psutil.Process(j._process.pid).children()])
    finally: ex.close()
    assert [n['state'] for n in now.values()]==['done'] and card(root)['attempts']==2, now
    whole = tmp_path/'whole'; monkeypatch.delenv('TOY_GATE'); list(run_sweep(runs, whole, Cluster(whole, kind='debug'))); assert card(whole)['loss']==card(root)['loss'] and card(whole)['attempts']==1

@pytest.fixture
def slurm(tmp_path_factory):
    "A machine that is a whole cluster; skipped where Slurm is missing and may not be installed"
    if sys.platform!='linux' or os.geteuid(): pytest.skip('a one-machine Slurm needs Linux and root')
    if not shutil.which('sbatch') and shutil.which('apt-get'):
        subprocess.run('apt-get install -y -qq --no-install-recommends slurm-wlm munge', shell=True, env=dict(os.environ, DEBIAN_FRONTEND='noninteractive'), capture_output=True, timeout=120)
    if not all(map(shutil.which, ('sbatch','slurmctld','slurmd','munged'))): pytest.skip('no Slurm here: install slurm-wlm and munge to run this test')
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    place = tmp_path_factory.mktemp('slurm'); env = dict(os.environ, SLURM_NODE_PORT=str(port if port<65000 else 16817)); up = subprocess.run(['bash', str(HERE/'slurm_node.sh'), 'up', str(place)], env=env, capture_output=True, text=True)
    try:
        if up.returncode: pytest.skip(f'Slurm does not start here: {(up.stdout+up.stderr)[-600:]}')
        yield place/'slurm.conf'
    finally: subprocess.run(['bash', str(HERE/'slurm_node.sh'), 'down', str(place)], capture_output=True)

@pytest.mark.slow
def test_a_sweep_on_slurm_with_a_preemption(slurm, tmp_path, monkeypatch):
    monkeypatch.setenv('SLURM_CONF', str(slurm)); gate = Gate(tmp_path/'gate', 2); root = tmp_path/'runs'; file = write_sweep(tmp_path/'s'); said = lambda *a: subprocess.run(a, capture_output=True, text=True).stdout.split()
    code,out = complete(file, tmp_path/'whole'); assert code==0, out
    with Sweep(file, root, '--executor', 'slurm', '--option', 'timeout_min=60', gate=gate) as s:
        try:
            s.wait(lambda: len(gate.held())==3); running = said('squeue','-h','-r','-t','RUNNING','-o','%i'); assert running and '_' in running[0], f'not an array: {running}'
            subprocess.run(['scancel','--signal=USR2', running[0]], check=True); s.wait(lambda: running[0] in said('squeue','-h','-r','-t','PENDING','-o','%i')) # back in the queue, as itself
            assert any(read_json(f)['state']=='resumable' for f in root.glob('*/card.json')), 'no checkpoint was asked for'
            subprocess.run(['scontrol','update',f'JobId={running[0]}','StartTime=now'], check=True); gate.open(); code,out = s.end()   # Slurm would wait two minutes
        finally: subprocess.run(['scancel','--me'], capture_output=True)
    assert code==0, out
    assert max(read_json(f)['attempts'] for f in root.glob('*/card.json'))==2 and differences(table(root), table(tmp_path/'whole'))==(0,0)
