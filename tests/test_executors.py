"Executors: nothing outlives the sweep, a lost worker is begun again"
from pathlib import Path
from promptbench.engine.folder import read_json
from toy_sweep import Gate, Sweep, complete, write_sweep

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
