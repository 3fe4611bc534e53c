"`promptbench lab` without a browser: it listens on this machine only, refuses strangers, and says what is wrong"
import os, signal, subprocess, sys, time
from pathlib import Path
import psutil, pytest
from promptbench.cli import lab as L
from promptbench.base.core import UserError, home

@pytest.fixture(scope='module')
def places(tmp_path_factory):
    "Folders of their own for whatever Jupyter reads and writes"
    top = tmp_path_factory.mktemp('jupyter')
    return {k: str(top/k.lower()) for k in ('JUPYTER_CONFIG_DIR','JUPYTER_DATA_DIR','JUPYTER_RUNTIME_DIR','IPYTHONDIR','JUPYTERLAB_SETTINGS_DIR','JUPYTERLAB_WORKSPACES_DIR')}

def planned(tmp_path, places, **more):
    plan = L.LabPlan(tmp_path, 'a.ipynb', **more); plan.env |= places; return plan

@pytest.fixture(scope='module')
def lab(places, tmp_path_factory):
    pytest.importorskip('jupyterlab', reason='JupyterLab is not installed'); plan = planned(tmp_path_factory.mktemp('root'), places)
    p = L.start(plan, wait=120); yield plan,p; L.stop(p)

def test_strangers_are_refused(lab):
    plan,_ = lab
    assert L.answer(plan.port)==403 and L.answer(plan.port, 'x'*32)==403 and L.answer(plan.port, plan.token[:-1])==403 and L.answer(plan.port, plan.token)==200

def test_it_listens_on_this_machine_only(lab):
    plan,p = lab; family = [psutil.Process(p.pid), *psutil.Process(p.pid).children(recursive=True)]
    def heard_by(q):
        try: return [c.laddr for c in q.net_connections(kind='inet') if c.status==psutil.CONN_LISTEN]
        except psutil.NoSuchProcess: return []                          # a helper that ended meanwhile
    heard = [a for q in family for a in heard_by(q)]
    assert any(a.port==plan.port for a in heard) and {a.ip for a in heard}=={'127.0.0.1'}

def test_the_token_is_in_no_command_line(lab):
    plan,p = lab; assert plan.token not in ' '.join(psutil.Process(p.pid).cmdline())

def test_a_second_lab_gets_another_port(lab): assert L.free_port(lab[0].port)!=lab[0].port

def test_a_taken_port_is_said(lab, places, tmp_path):
    with pytest.raises(UserError, match='taken'): L.start(planned(tmp_path, places, port=lab[0].port, token='another'), wait=60)

@pytest.mark.parametrize('line,said', [("c.IdentityProvider.token = ''", 'must refuse callers'), ("c.IdentityProvider.token = 'theirs'", 'must accept its token')])
def test_a_configuration_that_opens_the_lab_is_refused(line, said, places, tmp_path):
    pytest.importorskip('jupyterlab', reason='JupyterLab is not installed'); (tmp_path/'config').mkdir()
    (tmp_path/'config'/'jupyter_server_config.py').write_text(f"{line}\nc.ServerApp.ip = '0.0.0.0'\n")
    plan = planned(tmp_path, places|dict(JUPYTER_CONFIG_DIR=str(tmp_path/'config')), token='ours')
    with pytest.raises(UserError, match=said): L.start(plan, wait=120)
    assert L.answer(plan.port) is None                                  # and it is gone

def test_without_jupyterlab_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(L.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r"promptbench\[lab\]"): L.start(L.LabPlan(tmp_path, 'a.ipynb', port=1))

def test_the_command_prints_address_and_tunnel_and_ends_cleanly(places, tmp_path):
    pytest.importorskip('jupyterlab', reason='JupyterLab is not installed')
    env = {k:v for k,v in os.environ.items() if k!='JUPYTER_TOKEN'}|places|dict(SSH_CONNECTION='192.0.2'+'.1 5 192.0.2'+'.7 22', PYTHONUNBUFFERED='1')
    p = subprocess.Popen([sys.executable,'-m','promptbench.cli.main','lab','1'], env=env, cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True)
    said = ''
    while 'Ctrl-C' not in said: line = p.stdout.readline(); assert line, said; said += line
    url = next(w for w in said.split() if w.startswith('http://127.0.0.1:')); port,token = int(url.split(':')[2].split('/')[0]),url.split('token=')[1]
    assert '/nbs/lessons/1_' in url and len(token)==32 and f'ssh -N -L {port}:127.0.0.1:{port} ' in said and L.answer(port, token)==200 and L.answer(port)==403
    family = psutil.Process(p.pid).children(recursive=True); p.send_signal(signal.SIGTERM); p.wait(30); psutil.wait_procs(family, timeout=20)
    assert p.returncode==0 and not any(q.is_running() for q in family) and L.answer(port) is None

def installed(monkeypatch):
    "As in a package without a checkout"
    monkeypatch.setattr(L, 'checkout', lambda: None)

def test_without_a_checkout_the_lab_shows_this_folder_and_a_copy_of_the_lessons(monkeypatch, tmp_path, capsys):
    installed(monkeypatch); monkeypatch.chdir(tmp_path); seen = []
    monkeypatch.setattr(L, 'start', lambda plan, log: seen.append(plan) or (_ for _ in ()).throw(UserError('not here')))
    folder = tmp_path/'promptbench-lessons'; folder.mkdir(); (folder/'2_one_vector.ipynb').symlink_to('nowhere'); (folder/'7_statistics.ipynb').write_text('mine')
    for page,opens in ((None,'promptbench-lessons/00_start_here.ipynb'), ('3','promptbench-lessons/3_deep.ipynb'), ('panels','promptbench-lessons/panels_gallery.ipynb')):
        with pytest.raises(UserError, match='not here'): L.lab(page, None, False, None, False)
        assert seen[-1].opens==opens and seen[-1].root==tmp_path.resolve()
    assert capsys.readouterr().out.count('copied 8 lessons')==1
    assert {p.name for p in folder.iterdir()}=={p.name for p in (home()/'nbs'/'lessons').glob('*.ipynb')}
    assert (folder/'2_one_vector.ipynb').is_symlink() and (folder/'7_statistics.ipynb').read_text()=='mine'
    (tmp_path/'other').mkdir()
    with pytest.raises(UserError, match='not here'): L.lab('1', None, False, tmp_path/'other', False)
    assert (tmp_path/'other'/'promptbench-lessons'/'1_words.ipynb').is_file()

def test_a_notebook_of_ones_own_brings_no_lessons(monkeypatch, tmp_path):
    installed(monkeypatch); monkeypatch.chdir(tmp_path); (tmp_path/'mine.ipynb').write_text('{}')
    monkeypatch.setattr(L, 'start', lambda plan, log: (_ for _ in ()).throw(UserError(plan.opens)))
    with pytest.raises(UserError, match='^mine.ipynb$'): L.lab('mine.ipynb', None, False, None, False)
    assert [p.name for p in tmp_path.iterdir()]==['mine.ipynb']

def test_a_folder_that_takes_no_lessons_is_said(monkeypatch, tmp_path):
    installed(monkeypatch); (tmp_path/'promptbench-lessons').write_text('')
    with pytest.raises(UserError, match='a file is in the way'): L.lab(None, None, False, tmp_path, False)

def test_a_lesson_by_number_name_or_path():
    root = home(); five = L.first_page('5', root); assert five.startswith('nbs/lessons/5_') and L.first_page(str(root/five), root)==five and L.first_page(Path(five).stem, root)==five
    with pytest.raises(UserError, match='must be one of'): L.first_page('99', root)
    with pytest.raises(UserError, match='not below'): L.first_page(__file__, root/'nbs')
