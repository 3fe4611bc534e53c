"Where promptbench reads and where it writes, in a checkout and without one"
import subprocess
from pathlib import Path
import pytest
from promptbench.base import core
from promptbench.engine.work import _commit

@pytest.fixture
def package(tmp_path, monkeypatch):
    "A package as a wheel leaves it"
    inside = tmp_path/'site'/'promptbench'/'_files'; (inside/'data').mkdir(parents=True)
    monkeypatch.delenv('PROMPTBENCH_HOME', raising=False); monkeypatch.setattr(core, '_inside', lambda: inside)
    return inside

def test_a_package_has_its_files_inside_and_no_checkout(package):
    assert core.home()==package and core.checkout() is None and core.data_dir('paper','x.csv')==package/'data'/'paper'/'x.csv'

def test_a_named_home_wins_over_a_package(package, tmp_path, monkeypatch):
    (tmp_path/'mine'/'data').mkdir(parents=True); monkeypatch.setenv('PROMPTBENCH_HOME', str(tmp_path/'mine'))
    assert core.home()==core.checkout()==tmp_path/'mine'

def test_a_package_inside_somebodys_repository_has_no_commit(package, tmp_path):
    git = lambda *a: subprocess.run(['git','-c','user.name=a','-c','user.email=a',*a], cwd=tmp_path, check=True, capture_output=True)
    git('init','-q'); git('commit','-q','--allow-empty','-m','theirs')
    assert _commit.__wrapped__() is None

def test_a_folder_without_git_has_no_commit(tmp_path, monkeypatch):
    (tmp_path/'data').mkdir(); monkeypatch.setenv('PROMPTBENCH_HOME', str(tmp_path))
    assert _commit.__wrapped__() is None
    monkeypatch.setenv('PATH', str(tmp_path)); assert _commit.__wrapped__() is None

@pytest.mark.parametrize('platform,env,place', [
    ('linux', {}, 'me/.cache'), ('linux', dict(XDG_CACHE_HOME='far'), 'far'), ('freebsd14', {}, 'me/.cache'), ('darwin', dict(XDG_CACHE_HOME='far'), 'me/Library/Caches'),
    ('win32', dict(LOCALAPPDATA='local'), 'local'), ('win32', {}, 'me/AppData/Local')])
def test_the_cache_is_where_the_platform_wants_it(platform, env, place, monkeypatch):
    for name in ('PROMPTBENCH_CACHE','XDG_CACHE_HOME','LOCALAPPDATA'): monkeypatch.delenv(name, raising=False)
    for name,value in dict(env, HOME='me', USERPROFILE='me').items(): monkeypatch.setenv(name, value)
    monkeypatch.setattr(core.sys, 'platform', platform); assert core.cache_dir()==Path(place)/'promptbench'
    monkeypatch.setenv('PROMPTBENCH_CACHE', '~/here'); assert core.cache_dir()==Path('me/here')

def test_nobodys_cache_is_asked_for(monkeypatch):
    def nowhere(self): raise RuntimeError('Could not determine home directory.')
    for name in ('PROMPTBENCH_CACHE','XDG_CACHE_HOME'): monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(core.Path, 'expanduser', nowhere)
    with pytest.raises(core.UserError, match='set PROMPTBENCH_CACHE'): core.cache_dir()

def test_a_sweep_that_came_along_is_found_by_its_name(tmp_path, monkeypatch):
    from promptbench.cli.sweep import _sweep_file
    monkeypatch.chdir(tmp_path); ours = core.home()/'nbs'/'runs'/'sweeps'/'table1_small.yaml'
    assert _sweep_file(Path('table1_small'))==ours and _sweep_file(Path('other'))==Path('other') and _sweep_file(Path('sweeps/table1_small'))==Path('sweeps/table1_small')
    Path('table1_small').write_text('mine'); assert _sweep_file(Path('table1_small'))==Path('table1_small')
