"""Lessons in a real JupyterLab in a real Chromium: opened with the token, run top to bottom, no errors, charts drawn.

Screenshots go to PROMPTBENCH_SCREENSHOTS if it is set. Skipped, with a message, where there is no Chromium or no JupyterLab."""
import os, secrets, shutil, urllib.request
from pathlib import Path
import nbformat, pytest
from promptbench.cli import lab as L
from promptbench.lab.copies import bring
from promptbench.base.core import home
from promptbench.show.frame import find_browser

pytestmark = pytest.mark.browser
ARGS = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()
# Messages of JupyterLab itself that say nothing about our pages
HARMLESS = ('favicon','Failed to load resource: the server responded with a status of 404','ResizeObserver loop','[LSP]')

@pytest.fixture(scope='module')
def browser():
    api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed'); path = find_browser()
    if path is None or not Path(path).exists(): pytest.skip('no Chromium found; install it or set PROMPTBENCH_CHROMIUM')
    with api.sync_playwright() as pw:
        b = pw.chromium.launch(executable_path=path, args=ARGS, timeout=120_000); yield b; b.close()

@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "The Lab over a copy of the lessons, with Jupyter's own files out of the way"
    pytest.importorskip('jupyterlab', reason="JupyterLab is not installed: pip install 'promptbench[lab]'")
    top = tmp_path_factory.mktemp('lab'); root = top/'root'; shutil.copytree(home()/'nbs'/'lessons', root/'nbs'/'lessons', ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    plan = L.LabPlan(root, 'nbs/lessons/00_start_here.ipynb', options=['--LabApp.expose_app_in_browser=True'])
    plan.env |= {k: str(top/k.lower()) for k in ('JUPYTER_CONFIG_DIR','JUPYTER_DATA_DIR','JUPYTER_RUNTIME_DIR','IPYTHONDIR','JUPYTERLAB_SETTINGS_DIR','JUPYTERLAB_WORKSPACES_DIR')}
    plan.env |= dict(PROMPTBENCH_HOME=str(home()), HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1')
    p = L.start(plan, wait=120); yield plan; L.stop(p)

def opened(browser, plan, name, folder='nbs/lessons'):
    "A lesson in a fresh workspace: without one, the second page would restore the first"
    page = browser.new_page(viewport=dict(width=1280, height=1000)); page.set_default_timeout(90_000); page.trouble = []
    page.on('pageerror', lambda e: page.trouble.append(f'error: {e}'))
    page.on('console', lambda m: m.type=='error' and not any(h in m.text+str(m.location) for h in HARMLESS) and page.trouble.append(f'console: {m.text}'))
    page.on('request', lambda q: q.url.startswith(('http://127.0.0.1','ws://127.0.0.1','data:','blob:')) or page.trouble.append(f'asked for {q.url}'))
    page.goto(f'http://127.0.0.1:{plan.port}/lab/workspaces/{secrets.token_hex(4)}/tree/{folder}/{name}.ipynb?token={plan.token}', wait_until='domcontentloaded')
    page.wait_for_selector('.jp-NotebookPanel .jp-Notebook'); page.wait_for_function('() => window.jupyterapp?.shell.currentWidget?.sessionContext?.isReady')
    return page

CELLS = """() => [...window.jupyterapp.shell.currentWidget.content.model.cells].filter(c => c.type==='code').map(c => ({run: c.executionCount, source: c.sharedModel.getSource(),
    kinds: [...Array(c.outputs.length).keys()].map(i => c.outputs.get(i)).map(o => o.type==='error' ? 'error '+JSON.stringify(o.toJSON()).slice(0,600) : Object.keys(o.toJSON().data||{}).join(' '))}))"""

def run_all(page, limit):
    "Run the lesson from a fresh kernel and wait until its last cell is done; every code cell with its number and its outputs"
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function("() => { const n = window.jupyterapp.shell.currentWidget, c = [...n.content.model.cells].filter(c => c.type==='code'); return n.sessionContext.session?.kernel?.status==='idle' && (c.every(x => x.executionCount>0) || c.some(x => [...Array(x.outputs.length).keys()].some(i => x.outputs.get(i).type==='error'))); }", timeout=1000*limit, polling=500)
    return page.evaluate(CELLS)

def picture(page, name, tmp_path):
    "The whole lesson, screen by screen"
    where = Path(os.environ.get('PROMPTBENCH_SCREENSHOTS') or tmp_path); where.mkdir(parents=True, exist_ok=True)
    height = page.evaluate("() => { const w = document.querySelector('.jp-NotebookPanel .jp-WindowedPanel-outer'); w.scrollTop = 0; return w.scrollHeight; }")
    for i,y in enumerate(range(0, height, 900)):
        page.evaluate(f"() => document.querySelector('.jp-NotebookPanel .jp-WindowedPanel-outer').scrollTo(0, {y})"); page.wait_for_timeout(700)
        page.screenshot(path=where/f'lab_{name}_{i}.png')

@pytest.mark.parametrize('start,charts', [('1_',2),('5_',2)])
def test_a_lesson_runs_top_to_bottom(start, charts, browser, lab, tmp_path):
    name = next(p.stem for p in sorted((lab.root/'nbs'/'lessons').glob(f'{start}*.ipynb'))); page = opened(browser, lab, name); cells = run_all(page, 900)
    assert [k for c in cells for k in c['kinds'] if k.startswith('error')]==[] and all(c['run'] for c in cells)
    assert sum('plotly' in k for c in cells for k in c['kinds'])>=charts
    page.evaluate("() => { const w = document.querySelector('.jp-NotebookPanel .jp-WindowedPanel-outer'); w.scrollTop = w.scrollHeight; }")
    page.wait_for_selector('.js-plotly-plot .main-svg', state='attached'); picture(page, name, tmp_path)
    assert page.trouble==[]; page.close()

def test_start_here_opens_and_its_links_lead_somewhere(browser, lab, tmp_path):
    page = opened(browser, lab, '00_start_here'); page.wait_for_selector('.jp-RenderedMarkdown h1'); cells = run_all(page, 120)
    assert [k for c in cells for k in c['kinds'] if k.startswith('error')]==[]; picture(page, '00_start_here', tmp_path); assert page.trouble==[]; page.close()

DIRTY = "() => window.jupyterapp.shell.currentWidget.context.model.dirty"

def test_a_copy_opens_unchanged_and_cuts_no_line_off(browser, lab, tmp_path):
    "JupyterLab finds nothing to write when a kernel starts, so the tab is not marked; long lines of code are wrapped"
    bring(lab.root/'mine'); page = opened(browser, lab, '4_starts', 'mine'); page.wait_for_timeout(5000)
    assert page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status") in ('idle','starting','connected','unknown') and page.evaluate(DIRTY) is False
    assert page.locator('.jp-CodeCell .cm-lineWrapping').count()>3; picture(page, '4_starts', tmp_path)
    assert page.locator('.js-plotly-plot .main-svg').count() or page.locator('.jp-OutputArea-output').count(); assert page.trouble==[]; page.close()

def one_panel(folder):
    "A page with one panel"
    code = "import ipywidgets as W\nfrom promptbench.lab.panels import Panel\nPanel('Halves', W.IntText(3))"
    folder.mkdir(exist_ok=True); nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)], metadata=dict(kernelspec=dict(name='python3', display_name='Python 3 (ipykernel)', language='python'))), folder/'panel.ipynb')

def shot(page, name, tmp_path):
    where = Path(os.environ.get('PROMPTBENCH_SCREENSHOTS') or tmp_path); where.mkdir(parents=True, exist_ok=True); page.screenshot(path=where/f'{name}.png')

def test_a_panel_without_its_kernel_says_what_to_do(browser, lab, tmp_path):
    "First the kernel ends under the open page, then the page is opened again; while the panel lives there is no note"
    one_panel(lab.root/'one'); page = opened(browser, lab, 'panel', 'one'); run_all(page, 120); page.wait_for_selector('.pb-panel'); page.wait_for_timeout(4000)
    note = page.locator('.pb-ended'); assert note.count()==1 and not note.is_visible()
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')"); page.wait_for_timeout(1500)
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()"); page.wait_for_timeout(6000)
    shot(page, 'panel_restarted', tmp_path); assert note.is_visible()
    page.reload(wait_until='domcontentloaded'); page.wait_for_selector('.jp-NotebookPanel .jp-Notebook'); page.wait_for_selector('.pb-ended', state='attached'); page.wait_for_timeout(8000); shot(page, 'panel_reopened', tmp_path)
    assert note.is_visible() and 'Run the page again' in note.inner_text() and not page.get_by_text('model not found').is_visible() and page.locator('.pb-panel').count()==0
    page.close()

def test_the_page_itself_asks_for_the_token(browser, lab):
    page = browser.new_page(); page.goto(f'http://127.0.0.1:{lab.port}/lab', wait_until='domcontentloaded')
    assert '/login' in page.url and 'jupyterapp' not in page.content()
    for token in ('','wrong'): # neither page nor kernel
        ask = urllib.request.Request(f'http://127.0.0.1:{lab.port}/api/kernels?token={token}', method='POST')
        with pytest.raises(urllib.error.HTTPError) as e: urllib.request.build_opener(urllib.request.ProxyHandler({})).open(ask, timeout=10)
        assert e.value.code==403
    page.close()
