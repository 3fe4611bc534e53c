"`promptbench lab` without a browser: it listens on this machine only, refuses strangers, and says what is wrong"
import json, os, re, shutil, signal, subprocess, sys, urllib.request
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

STARTED = []

@pytest.fixture(autouse=True)
def no_command_is_left():
    "A test that fails leaves no Lab behind"
    yield
    for p in STARTED: p.kill(); p.wait(); p.stdout.close()
    STARTED.clear()

def begun(command, places, home, cwd):
    "A command that starts the Lab, what it said, and all processes below it"
    pytest.importorskip('jupyterlab', reason='JupyterLab is not installed')
    env = {k:v for k,v in os.environ.items() if k!='JUPYTER_TOKEN'}|places
    env |= dict(HOME=str(home), TMPDIR=str(home), SSH_CONNECTION='192.0.2'+'.1 5 192.0.2'+'.7 22', PYTHONUNBUFFERED='1')
    def ends_with_its_terminal(): signal.signal(signal.SIGHUP, signal.SIG_DFL)   # also where these tests themselves run under nohup
    p = subprocess.Popen(command, env=env, cwd=cwd, stdout=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=ends_with_its_terminal); STARTED.append(p)
    said = ''
    while 'Ctrl-C' not in said:
        line = p.stdout.readline(); assert line, said
        said += line
    return p,said,psutil.Process(p.pid).children(recursive=True)

LAB = [sys.executable,'-m','promptbench.cli.main','lab','1']
def port_of(said): return int(said.split('http://127.0.0.1:')[1].split('/')[0])

def test_the_command_prints_address_and_tunnel_and_ends_cleanly(places, tmp_path):
    p,said,family = begun(LAB, places, tmp_path, tmp_path)
    url = next(w for w in said.split() if w.startswith('http://127.0.0.1:')); port,token = port_of(said),url.split('token=')[1]
    assert '/lab/tree/1_words.ipynb' in url and len(token)==32 and f'ssh -N -L {port}:127.0.0.1:{port} ' in said and L.answer(port, token)==200 and L.answer(port)==403
    assert f'starting JupyterLab on {tmp_path/"promptbench-lessons"}' in said and (tmp_path/'promptbench-lessons'/'1_words.ipynb').is_file()
    p.send_signal(signal.SIGTERM); p.wait(30); psutil.wait_procs(family, timeout=20)
    assert p.returncode==0 and not any(q.is_running() for q in family) and L.answer(port) is None

def kernel_of(said, family):
    "Start a kernel in a Lab; all processes below the Lab then"
    url = next(w for w in said.split() if w.startswith('http://127.0.0.1:')); token = url.split('token=')[1]
    ask = urllib.request.Request(f'http://127.0.0.1:{port_of(said)}/api/kernels', data=b'{}', method='POST', headers=dict(Authorization=f'token {token}'))
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(ask, timeout=60) as r: assert r.status==201
    server = next(q for q in family if q.is_running() and 'promptbench.lab.server' in q.cmdline()); kernels = server.children(recursive=True)
    assert kernels; return [*(q for q in family if q.is_running()), *kernels]

def run_py(tmp_path):
    "`run.py lab` as a person calls it, on this environment in place of one of its own"
    code = f"import sys; sys.path.insert(0, {str(home())!r}); import run; from pathlib import Path; run.PY = Path(sys.executable); sys.exit(run.lab(['1','--no-browser']))"
    return [sys.executable, '-c', code]

@pytest.mark.parametrize('name', ['SIGKILL','SIGTERM','SIGHUP'])
@pytest.mark.parametrize('layer', ['promptbench','run.py'])
def test_nothing_is_left_however_the_command_ends(layer, name, places, tmp_path):
    p,said,family = begun(LAB if layer=='promptbench' else run_py(tmp_path), places, tmp_path, tmp_path)
    family = kernel_of(said, family)
    os.kill(p.pid, getattr(signal, name)); p.wait(30)
    _,alive = psutil.wait_procs(family, timeout=30)
    assert not alive and L.answer(port_of(said)) is None and not list(tmp_path.glob('promptbench-lab-*'))

def begin(monkeypatch, tmp_path):
    "The command up to where it would start the server; the plans it made"
    seen = []
    def not_here(plan, log): seen.append(plan); raise UserError('not here')
    monkeypatch.setattr(L, 'start', not_here); monkeypatch.setenv('HOME', str(tmp_path/'home')); monkeypatch.chdir(tmp_path)
    return seen

def lab_of(page=None, folder=None, root=None, reset=None): L.lab(page, None, False, folder, root, reset, False)

def test_lessons_open_as_copies_in_a_folder_of_ones_own(monkeypatch, tmp_path, capsys):
    seen = begin(monkeypatch, tmp_path); folder = tmp_path/'home'/'promptbench-lessons'; before = {p: p.read_bytes() for p in (home()/'nbs'/'lessons').glob('*.ipynb')}
    for page,opens in ((None,'00_start_here.ipynb'), ('3','3_deep.ipynb'), ('panels','panels_gallery.ipynb'), ('table1','runs/table1.ipynb'), (str(home()/'nbs'/'lessons'/'4_starts.ipynb'),'4_starts.ipynb')):
        with pytest.raises(UserError, match='not here'): lab_of(page)
        assert seen[-1].opens==opens and seen[-1].root==folder and (folder/opens).is_file()
    assert capsys.readouterr().out.count('copied ')==1 and before=={p: p.read_bytes() for p in before}
    assert {p.name for p in folder.glob('*.ipynb')}=={p.name for p in before} and {p.name for p in (folder/'runs').iterdir()}=={p.name for p in (home()/'nbs'/'runs').glob('*.ipynb')}

def test_what_lies_in_the_folder_stays(monkeypatch, tmp_path, capsys):
    begin(monkeypatch, tmp_path); folder = tmp_path/'promptbench-lessons'; folder.mkdir()             # here, so not in the home folder
    (folder/'2_one_vector.ipynb').symlink_to('nowhere'); (folder/'7_statistics.ipynb').write_text('mine'); (folder/'3_deep.ipynb').mkdir(); (folder/'.copied.json').write_text('{"1_words.ipynb": 3')
    for _ in range(2):
        with pytest.raises(UserError, match='not here'): lab_of('1')
    assert (folder/'2_one_vector.ipynb').is_symlink() and (folder/'7_statistics.ipynb').read_text()=='mine' and (folder/'3_deep.ipynb').is_dir() and not (tmp_path/'home').exists()
    said = capsys.readouterr().out; assert said.count('7_statistics_new.ipynb')==1 and (folder/'7_statistics_new.ipynb').is_file()   # offered beside, once

def test_a_root_and_a_folder_may_be_given(monkeypatch, tmp_path):
    seen = begin(monkeypatch, tmp_path)
    with pytest.raises(UserError, match='not here'): lab_of('1', root=tmp_path)
    assert (seen[-1].root,seen[-1].opens)==(tmp_path.resolve(),'promptbench-lessons/1_words.ipynb')
    with pytest.raises(UserError, match='not here'): lab_of('1', folder=Path('mine'))
    assert (seen[-1].root,seen[-1].opens)==(tmp_path.resolve()/'mine','1_words.ipynb')
    with pytest.raises(UserError, match='among the originals'): lab_of('1', folder=home()/'nbs'/'lessons')
    with pytest.raises(UserError, match='among the originals'): lab_of('1', folder=home()/'nbs'/'new')

def test_reset_puts_the_original_back_and_keeps_what_was_written(monkeypatch, tmp_path, capsys):
    seen = begin(monkeypatch, tmp_path); folder = tmp_path/'home'/'promptbench-lessons'
    with pytest.raises(UserError, match='not here'): lab_of()
    fresh = (folder/'4_starts.ipynb').read_bytes()
    for i in range(3): (folder/'4_starts.ipynb').write_text(f'mine {i}'); lab_of(reset='4')
    assert (folder/'4_starts.ipynb').read_bytes()==fresh and sorted(p.read_text() for p in folder.glob('4_starts_*'))==['mine 0','mine 1','mine 2'] and len(seen)==1
    (folder/'5_pretraining.ipynb').write_text('five'); (folder/'6_meta.ipynb').unlink(); lab_of(reset='all')
    assert [p.read_text() for p in folder.glob('5_pretraining_*')]==['five'] and (folder/'6_meta.ipynb').is_file() and len(list(folder.glob('4_starts*')))==4
    assert 'yours is kept as 5_pretraining_' in capsys.readouterr().out
    with pytest.raises(UserError, match='must be one of'): lab_of(reset='99')

def next_version(tmp_path, monkeypatch):
    "A home whose lesson 1 says something new"
    there = tmp_path/'newer'; shutil.copytree(home()/'nbs'/'lessons', there/'nbs'/'lessons'); shutil.copytree(home()/'nbs'/'runs', there/'nbs'/'runs'); (there/'data').mkdir()
    page = there/'nbs'/'lessons'/'1_words.ipynb'; page.write_text(page.read_text().replace('1 · A task in words', '1 · A task in other words'))
    monkeypatch.setenv('PROMPTBENCH_HOME', str(there))

@pytest.mark.parametrize('mine', [False, True])
def test_an_upgrade_overwrites_nothing_that_a_person_wrote(mine, monkeypatch, tmp_path, capsys):
    begin(monkeypatch, tmp_path); folder = tmp_path/'home'/'promptbench-lessons'; page = folder/'1_words.ipynb'
    with pytest.raises(UserError, match='not here'): lab_of()
    if mine: page.write_text('my answers')
    next_version(tmp_path, monkeypatch); capsys.readouterr()
    for _ in range(2):
        with pytest.raises(UserError, match='not here'): lab_of()
    new,said = folder/'1_words_new.ipynb',capsys.readouterr().out
    if not mine: assert 'other words' in page.read_text() and not new.exists() and said.count('renewed 1 pages')==1; return
    assert page.read_text()=='my answers' and 'other words' in new.read_text() and said.count('lies beside it')==1
    new.unlink()                                                        # seen, and not wanted
    with pytest.raises(UserError, match='not here'): lab_of()
    assert not new.exists()

def test_links_of_the_copies_lead_somewhere(monkeypatch, tmp_path):
    from promptbench.lab.copies import bring
    bring(tmp_path/'x'); dead = []
    for p in (tmp_path/'x').rglob('*.ipynb'):
        text = '\n'.join(''.join(c['source']) for c in json.loads(p.read_text())['cells'] if c['cell_type']=='markdown')
        dead += [(p.name,l) for l in re.findall(r'\]\(([^)#]+)', re.sub(r'```.*?```', '', text, flags=re.S)) if '://' not in l and not (p.parent/l).resolve().is_file()]
    assert not dead

def test_a_notebook_of_ones_own_brings_no_lessons(monkeypatch, tmp_path):
    seen = begin(monkeypatch, tmp_path); (tmp_path/'mine.ipynb').write_text('{}')
    with pytest.raises(UserError, match='not here'): lab_of('mine.ipynb')
    assert (seen[-1].opens,seen[-1].root)==('mine.ipynb',tmp_path.resolve()) and [p.name for p in tmp_path.iterdir()]==['mine.ipynb']

def test_a_page_of_the_checkout_opens_where_it_lies(monkeypatch, tmp_path):
    seen = begin(monkeypatch, tmp_path)
    with pytest.raises(UserError, match='not here'): lab_of(str(home()/'nbs'/'00_base'/'00_core.ipynb'))
    assert (seen[-1].opens,seen[-1].root)==('nbs/00_base/00_core.ipynb',home())

def test_a_folder_that_takes_no_lessons_is_said(monkeypatch, tmp_path):
    begin(monkeypatch, tmp_path); (tmp_path/'promptbench-lessons').write_text('')
    with pytest.raises(UserError, match='a file is in the way'): lab_of(root=tmp_path)

def test_no_lesson_of_that_name_and_no_way_out_of_the_root(tmp_path):
    with pytest.raises(UserError, match='must be one of'): L.first_page('99', tmp_path, tmp_path)
    with pytest.raises(UserError, match='not below'): L.first_page(__file__, tmp_path, tmp_path)
