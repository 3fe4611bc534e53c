"Run pages and run folders: what is refused before a kernel starts, what a failure says, what is never computed twice"
import json, os, re, signal, subprocess, sys, time
from pathlib import Path
import nbformat, pytest
from promptbench.base.core import UserError
from promptbench.base.own import making, mark
from promptbench.engine.folder import ask_to_stop, begin, find_run, gc, list_runs, lock_of, needed_by, read_json, remove, run_state, set_card
from promptbench.base.mend import EXITS
from promptbench.engine.pages import check_parameters, declared, execute, find_page, parameters, parse_value, run_key

ROOT = Path(__file__).resolve().parent.parent
PAGES = ('lm_pretrain','pretrain','tune','evaluate','table1','report')

def toy(folder, work='print("steps", steps)', source='steps = 3  # how many\nlr = 0.1\nway = "up"  # one of "up", "down": where to\nsome = [0, 16]\nn = None  # int or None: most\nflag = False\nout = ""', tags=('parameters',), kernel='python3', name='toy'):
    cell = nbformat.v4.new_code_cell; nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell('# Toy'), cell(source, metadata=dict(tags=list(tags))), nbformat.v4.new_markdown_cell('## The work'), cell(work)])
    nb.metadata.kernelspec = dict(name=kernel, language='python', display_name=kernel); nbformat.write(nb, folder/f'{name}.ipynb'); return folder/f'{name}.ipynb'

def cli(*args, wait=True, **env):
    p = subprocess.Popen([sys.executable,'-m','promptbench.cli.main',*map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ|env, cwd=ROOT)
    if not wait: return p
    out,err = p.communicate(); return p.returncode,out,err

# --- parameters ------------------------------------------------------------------------------------------------------
BAD = {
    'unknown': (dict(step=1), "no parameter 'step'; did you mean 'steps'?"),
    'word for a number': (dict(steps='many'), "must be int like 3, got 'many'"),
    'fraction for a count': (dict(steps=1.5), 'must be int like 3'),
    'yes for a count': (dict(steps=True), 'must be int like 3'),
    'number for yes': (dict(flag=1), 'must be bool like False'),
    'none where none is not said': (dict(steps=None), 'must be int'),
    'exponent without a point': (dict(lr='1e-3'), "must be float like 0.1, got '1e-3'"),
    'not among the choices': (dict(way='left'), "must be one of ['up', 'down'], got 'left'"),
    'text where a default of none means a count': (dict(n='x'), "must be int or None, got 'x'"),
    'item of another kind': (dict(some=['a']), 'must be a list of int'),
    'one for a list': (dict(some=16), 'must be list'),
}

@pytest.mark.parametrize('name', BAD)
def test_refused_before_a_kernel_starts(name, tmp_path):
    given,said = BAD[name]
    for f in (lambda: check_parameters(toy(tmp_path), given), lambda: run_key(toy(tmp_path), given), lambda: execute(toy(tmp_path), given, root=tmp_path/'runs')):
        with pytest.raises(UserError, match=re.escape(said)): f()
    assert not (tmp_path/'runs').exists()

def test_values_from_a_command_line(tmp_path):
    d = declared(toy(tmp_path)); v = lambda n,t: parse_value(d[n], t)
    assert [v('lr','1e-3'), v('n','None'), v('n','5'), v('way','5'), v('flag','true'), v('some','[1,2]'), v('steps','x')]==[1e-3,None,5,'5',True,[1,2],'x']
    assert parse_value(declared(find_page('table1'))['methods'], 'none,T+P')==['none','T+P']

@pytest.mark.parametrize('source,tags,said', [('steps = 1', (), 'one cell tagged `parameters`, it has 0'), ('a = 1\nb = a+1', ('parameters',), 'line 2 .* must be `name = literal`'), ('import os', ('parameters',), 'line 1')])
def test_a_page_without_the_tag_or_with_more_than_literals(tmp_path, source, tags, said):
    with pytest.raises(UserError, match=said): execute(toy(tmp_path, source=source, tags=tags), {}, root=tmp_path/'runs')

def test_two_tagged_cells_are_refused(tmp_path):
    p = toy(tmp_path); nb = nbformat.read(p, 4); nb.cells[-1].metadata.tags = ['parameters']; nbformat.write(nb, p)
    with pytest.raises(UserError, match='it has 2'): parameters(p)

def test_the_key_is_page_code_parameters_and_version(tmp_path, monkeypatch):
    p = toy(tmp_path); k = run_key(p, {}); assert k.startswith('toy-') and k==run_key(p, dict(steps=3, lr=.1, out='/x'))
    assert run_key(p, dict(lr=1))==run_key(p, dict(lr=1.)) and len({k, run_key(p, dict(steps=4)), run_key(p, dict(way='down'))})==3
    nb = nbformat.read(p, 4); nb.cells[0].source = '# Toy, better said'; nbformat.write(nb, p); assert run_key(p, {})==k
    nb.cells[-1].source += '\n1'; nbformat.write(nb, p); assert run_key(p, {})!=k
    k = run_key(p, {}); monkeypatch.setattr('promptbench.engine.job.__version__', '9.9'); assert run_key(p, {})!=k

@pytest.mark.parametrize('name', PAGES)
def test_every_page_declares_what_it_takes(name):
    cells = nbformat.read(find_page(name), 4).cells; d = declared(find_page(name))
    assert re.match(r'# .+\n\n> .+\n\n.+', cells[0].source) and 'parameters' in cells[1].metadata['tags'], 'title, line, reason, then the parameters'
    assert any(c.cell_type=='code' and not c.source.strip().split('\n')[-1].startswith(('import','from','pio.')) for c in cells[2:6]), 'no result in the first six cells'
    assert d['out'].default=='' and all(p.note for p in d.values()), 'every parameter is explained, and `out` may stay empty'
    assert check_parameters(find_page(name), {})==parameters(find_page(name)), 'a default must be among its own choices'
    assert all(p.kinds for p in d.values()) and not [n for n,p in d.items() if p.note.startswith('one of') and not p.choices]

def test_known_choices():
    assert declared(find_page('pretrain'))['method'].choices==('T-only','P-only','T+P','FOMAML','Reptile')
    for given in (dict(scale='huge'), dict(methods=['none','T0'])):
        with pytest.raises(UserError, match='must be one of'): check_parameters(find_page('table1'), given)

# --- the command -----------------------------------------------------------------------------------------------------
def test_wrong_calls_exit_with_2_and_leave_nothing(tmp_path):
    p = toy(tmp_path); untagged = toy(tmp_path, tags=(), name='untagged'); strange = toy(tmp_path, kernel='nowhere', name='strange')
    for args,said in (([p,'-p','step','1'], "did you mean 'steps'"), ([untagged], 'tagged'), ([strange], "needs the kernel 'nowhere', which is not installed"), ([p,'--track','mlflow'], 'tracker must be one of')):
        code,out,err = cli('run', *args, '--root', tmp_path/'runs'); assert (code, said in err, 'Traceback' in err)==(2, True, False), err
    assert not list((tmp_path/'runs').glob('*/card.json'))

def test_help_tells_exit_codes_and_list_tells_parameters(tmp_path):
    from typer.testing import CliRunner
    from promptbench.cli.runs import app
    text = re.sub(r'[\s│]+', ' ', CliRunner().invoke(app, ['run','--help']).stdout)
    for code in EXITS: assert f' {code} ' in text, code
    for option in ('--list','--help-parameters'):
        out = CliRunner().invoke(app, ['run',str(toy(tmp_path)),option]).stdout; assert 'steps' in out and 'how many' in out and "'up'" in out
    for args,said in ((['-p','steps'], 'and no value'), (['x'], 'belongs to no option'), (['-p','out=/tmp/x'], 'cannot be given')):
        assert said in str(CliRunner().invoke(app, ['run',str(toy(tmp_path)),*args,'--root',str(tmp_path/'r')]).exception)

# --- one run ---------------------------------------------------------------------------------------------------------
def test_a_run_is_computed_once(tmp_path):
    p = toy(tmp_path, 'from promptbench.engine.inside import note\nnote(out, config=dict(steps=steps), budget=dict(updates=steps)); print("worked")'); r = execute(p, dict(steps=5), root=tmp_path/'runs')
    assert (r.state, r.code, r.fresh, str(run_state(r.folder)))==('done', 0, True, 'done')
    card = read_json(r.folder/'card.json'); assert card['parameters']['steps']==5 and card['config']==dict(steps=5) and card['budget']==dict(updates=5) and card['hardware']['cores'] and card['versions']['python'] and card['attempts']==1
    assert 'worked' in (r.folder/'log.txt').read_text() and nbformat.read(r.folder/'page.ipynb', 4).cells[-1].outputs
    stamp = (r.folder/'card.json').stat().st_mtime_ns; again = execute(p, dict(steps=5), root=tmp_path/'runs'); assert again.fresh is False and (r.folder/'card.json').stat().st_mtime_ns==stamp

def test_a_failing_page_says_which_cell_and_why_on_one_screen(tmp_path):
    p = toy(tmp_path, 'def f(n):\n    return 1/(n-3)\nf(steps)'); code,out,err = cli('run', p, '--root', tmp_path/'runs')
    assert code==1 and "('The work'): ZeroDivisionError: division by zero" in err and 'return 1/(n-3)' in err and 'page.ipynb' in err and 'log.txt' in err and err.count('\n')<30, err
    f = next((tmp_path/'runs').glob('toy-*')); assert str(run_state(f))=='failed' and 'ZeroDivisionError' in run_state(f).what and any(o.output_type=='error' for c in nbformat.read(f/'page.ipynb', 4).cells for o in c.get('outputs', []))

@pytest.mark.parametrize('work,said', [('import os, signal; os.kill(os.getpid(), signal.SIGKILL)', 'kernel died without a word, most often because the system ran out of memory'),
                                       ('import resource; resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30)); x = bytearray(2**32)', 'memory ran out: lower')], ids=['killed','MemoryError'])
def test_out_of_memory(tmp_path, work, said):
    r = execute(toy(tmp_path, work), {}, root=tmp_path/'runs'); assert (r.state, r.code)==('failed', 3) and said in r.message
    assert str(run_state(r.folder))=='failed' and (r.folder/'page.ipynb').stat().st_size

def test_a_run_names_what_it_needs(tmp_path):
    first = execute(toy(tmp_path, ''), {}, root=tmp_path/'runs'); after = toy(tmp_path, 'print(a)', source='a = ""  # a run', name='after')
    r = execute(after, dict(a=f'run:{first.key}'), root=tmp_path/'runs'); assert r.code==0 and read_json(r.folder/'card.json')['needs']==[first.key]
    assert str(first.folder) in (r.folder/'log.txt').read_text(), 'the page gets a place, the key only a name'
    with pytest.raises(UserError, match='must be done, it is absent'): execute(after, dict(a='run:toy-0'), root=tmp_path/'runs')
    with pytest.raises(UserError, match=f'needed by {r.key}'): remove(first.key, tmp_path/'runs')

KILLED = 'from promptbench.engine.inside import watched\nimport time, os\nfor r in watched(range(1200 if not os.path.exists(out+"/seen") else 3), 1200, "toy", every=.1): open(out+"/seen","w"); time.sleep(.1)'

def test_a_killed_run_leaves_no_kernel_and_goes_on(tmp_path):
    import psutil
    p = toy(tmp_path, KILLED); child = cli('run', p, '--root', tmp_path/'runs', '--quiet', wait=False); f = tmp_path/'runs'/run_key(p, {}); end = time.time()+60
    while not (f/'progress.json').exists(): assert time.time()<end and child.poll() is None; time.sleep(.05)
    s = run_state(f); assert s=='running' and s.total==1200 and s.step>0 and 60<s.eta<1200
    kernel = read_json(f/'kernel.json')['pid']; assert cli('run', p, '--root', tmp_path/'runs')[0]==75, 'two at one run'
    child.kill(); child.communicate(); assert run_state(f)=='resumable'
    end = time.time()+30
    while psutil.pid_exists(kernel) and psutil.Process(kernel).status()!='zombie': assert time.time()<end; time.sleep(.1)
    r = execute(p, {}, root=tmp_path/'runs'); assert r.code==0 and read_json(f/'card.json')['attempts']==2

# --- the folders -----------------------------------------------------------------------------------------------------
def make(root, key, state, page='toy', **card): begin(root/key, dict(page=page, **card)); set_card(root/key, state=state)

def test_gc_keeps_what_later_runs_need_and_says_so(tmp_path):
    make(tmp_path, 'base', 'done', started='x'); set_card(tmp_path/'base', started='2020-01-01T00:00:00'); make(tmp_path, 'child', 'done', needs=['base']); make(tmp_path, 'bad', 'failed'); make(tmp_path, 'old', 'done'); set_card(tmp_path/'old', started='2020-01-01T00:00:00')
    step = tmp_path/'child'/'checkpoints'/'step-00000001'; step.mkdir(parents=True); mark(step, 'checkpoint'); (tmp_path/'child'/'checkpoints'/'final').mkdir(); (tmp_path/'notes').mkdir()
    left = making(tmp_path/'x'); os.utime(left, (0, 0)); (tmp_path/'.gone-x').mkdir(); os.utime(tmp_path/'.gone-x', (0, 0))
    before = sorted(tmp_path.rglob('*')); plan = {r['what']:r for r in gc(tmp_path, older=30, dry_run=True)}; assert sorted(tmp_path.rglob('*'))==before
    assert {w for w,r in plan.items() if r['gone']}=={'bad','old',left.name,'child/checkpoints/step-00000001'} and plan['base']['why'].endswith('needed by child') and not plan['base']['gone']
    assert {r['what'] for r in gc(tmp_path, older=30) if r['gone']}=={w for w,r in plan.items() if r['gone']}
    assert {r['key'] for r in list_runs(tmp_path)}=={'base','child'} and (tmp_path/'notes').is_dir() and (tmp_path/'child'/'checkpoints'/'final').is_dir()
    make(tmp_path, 'live', 'failed'); set_card(tmp_path/'live', state='running')
    with lock_of(tmp_path/'live'):
        assert 'live' not in {r['what'] for r in gc(tmp_path, older=0) if r['gone']}
        with pytest.raises(UserError, match='is running'): remove('live', tmp_path)

def test_damaged_and_foreign_cards(tmp_path):
    make(tmp_path, 'a', 'done'); (tmp_path/'a'/'card.json').write_text('{"state": '); assert run_state(tmp_path/'a')=='absent'
    (tmp_path/'a'/'card.json').write_text('{"state": "odd", "page": "x"}'); (tmp_path/'b').mkdir(); (tmp_path/'b'/'card.json').write_text('{"name": "tiny"}'); assert list_runs(tmp_path)==[]
    with pytest.raises(UserError, match='it fits 0'): find_run('a', tmp_path)

def test_show_and_rm(tmp_path):
    from typer.testing import CliRunner
    from promptbench.cli.runs import app
    make(tmp_path, 'base-1', 'done'); make(tmp_path, 'child-1', 'done', needs=['base-1']); (tmp_path/'base-1'/'big').write_bytes(b'0'*5000)
    do = lambda *a: CliRunner().invoke(app, ['runs',*a,'--root',str(tmp_path)])
    assert '5 KiB' in do('ls').stdout and 'needs base-1' in do('ls').stdout and 'needed by child-1' in do('show','base').stdout
    assert 'needed by child-1' in do('rm','base','--dry-run').stdout and 'needed by child-1' in str(do('rm','base').exception) and (tmp_path/'base-1').exists()
    assert 'made from it: child-1' in do('rm','base','--force').stdout and not (tmp_path/'base-1').exists()

def test_launching_needs_no_torch():
    code = "import sys, promptbench.engine.pages, promptbench.engine.folder, promptbench.engine.inside, promptbench.base.stop; print([m for m in ('torch','transformers','papermill','pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable,'-c',code], capture_output=True, text=True, check=True).stdout.strip()=='[]'
