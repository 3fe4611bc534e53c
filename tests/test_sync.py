"Notebooks and modules in step, and the check that says so can fail"
import json, shutil
from pathlib import Path
import pytest
from sync_check import ROOT, differences

def test_notebooks_are_clean_and_modules_in_step():
    found = differences()
    assert not found, '\n'.join(found)

CELLS = [('markdown','# A\n\n> A page'), ('code','#| default_exp a'), ('code','#| export\ndef f(): return 1')]

def write_page(path, cells):
    made = [dict(cell_type=kind, id=f'c{i}', metadata={}, source=text, **(dict(execution_count=None, outputs=[]) if kind=='code' else {})) for i,(kind,text) in enumerate(cells)]
    path.write_text(json.dumps(dict(cells=made, metadata={}, nbformat=4, nbformat_minor=5)))

@pytest.fixture
def project(tmp_path):
    "A project of one page, exported and clean"
    import subprocess, sys
    from sync_check import NBDEV
    (tmp_path/'nbs').mkdir(); (tmp_path/'promptbench').mkdir(); (tmp_path/'promptbench'/'__init__.py').write_text('')
    for f in ('settings.ini','pyproject.toml'): shutil.copy(ROOT/f, tmp_path)
    write_page(tmp_path/'nbs'/'00_a.ipynb', CELLS)
    subprocess.run([sys.executable,'-c',NBDEV], cwd=tmp_path, check=True, capture_output=True)
    assert differences(tmp_path)==[]
    return tmp_path

def test_an_edited_module_is_found(project):
    p = project/'promptbench'/'a.py'; p.write_text(p.read_text().replace('return 1','return 2'))
    assert differences(project)==['promptbench/a.py differs from its notebook; change the notebook, then nbdev_export']

def test_a_page_not_exported_is_found(project):
    write_page(project/'nbs'/'01_b.ipynb', [(k,t.replace('default_exp a','default_exp b')) for k,t in CELLS])
    assert 'promptbench/b.py is not exported yet; run nbdev_export' in differences(project)

def test_a_module_without_a_notebook_is_found(project):
    (project/'nbs'/'00_a.ipynb').unlink(); write_page(project/'nbs'/'01_b.ipynb', [(k,t.replace('default_exp a','default_exp b')) for k,t in CELLS])
    assert 'promptbench/a.py has no notebook any more; remove it' in differences(project)

def test_an_unclean_notebook_is_found(project):
    p = project/'nbs'/'00_a.ipynb'; p.write_text(p.read_text().replace('"execution_count": null','"execution_count": 7'))
    assert differences(project)==['nbs/00_a.ipynb is not clean; run nbdev_clean']

def test_the_parameters_tag_survives_cleaning(project):
    "Without it papermill runs the defaults and exits with 0"
    p = project/'nbs'/'00_a.ipynb'; nb = json.loads(p.read_text()); nb['cells'][2]['metadata'] = dict(tags=['parameters'])
    p.write_text(json.dumps(nb, indent=1, sort_keys=True)+'\n')
    assert differences(project)==[]
