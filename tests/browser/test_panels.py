"The live panels in a real JupyterLab, driven by a real Chromium without network: controls are moved, and what is displayed must be what the functions below say"
import os, re, secrets, shutil, signal, socket, subprocess, sys, time, urllib.request
from pathlib import Path
import pytest
from promptbench.show.frame import find_browser

ROOT = Path(__file__).resolve().parents[2]
ARGS = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()
pytestmark = pytest.mark.browser
WAIT = int(os.environ.get('PROMPTBENCH_BROWSER_WAIT', 120))*1000 # Longest wait for anything, ms

@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "JupyterLab on a copy of the gallery: loopback, a token, settings in temporary folders"
    pytest.importorskip('jupyterlab', reason='jupyterlab is not installed'); pytest.importorskip('anywidget', reason='anywidget is not installed')
    root = tmp_path_factory.mktemp('lab'); (root/'work').mkdir(); shutil.copy(ROOT/'nbs'/'lessons'/'panels_gallery.ipynb', root/'work')
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    token = secrets.token_hex(16); places = dict(JUPYTER_CONFIG_DIR='cfg', JUPYTER_RUNTIME_DIR='rt', IPYTHONDIR='ipy', JUPYTERLAB_SETTINGS_DIR='set', JUPYTERLAB_WORKSPACES_DIR='ws', TMPDIR='tmp')
    for p in places.values(): (root/p).mkdir()
    (root/'set'/'@jupyterlab'/'apputils-extension').mkdir(parents=True); (root/'set'/'@jupyterlab'/'apputils-extension'/'notification.jupyterlab-settings').write_text('{"fetchNews":"false","checkForUpdates":false,"doNotDisturbMode":true}')
    env = {**os.environ, 'JUPYTER_TOKEN':token, 'PROMPTBENCH_HOME':str(ROOT), 'OMP_NUM_THREADS':'1', 'HF_HUB_OFFLINE':'1', **{k:str(root/p) for k,p in places.items()}}
    command = [sys.executable,'-m','jupyterlab','--no-browser','--allow-root','--ServerApp.ip=127.0.0.1',f'--ServerApp.port={port}','--ServerApp.port_retries=0',f'--ServerApp.root_dir={root/"work"}',
               '--LabApp.expose_app_in_browser=True','--LabApp.extension_manager=readonly','--ServerApp.terminals_enabled=False']
    with open(root/'log', 'w') as log: server = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    url = f'http://127.0.0.1:{port}'
    try:
        for _ in range(240):
            try: urllib.request.urlopen(f'{url}/api/status?token={token}', timeout=2); break
            except OSError: time.sleep(.5)
        else: raise RuntimeError((root/'log').read_text()[-3000:])
        yield url,token,root
    finally:
        server.send_signal(signal.SIGINT); time.sleep(.2); server.send_signal(signal.SIGTERM)
        try: server.wait(20)
        except subprocess.TimeoutExpired: os.killpg(server.pid, signal.SIGKILL)

@pytest.fixture(scope='module')
def page(lab):
    "The gallery, opened and run from top to bottom; whatever goes wrong is collected in `page.trouble`"
    api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed'); path = find_browser()
    if path is None or not Path(path).exists(): pytest.skip('no Chromium found; install it or set PROMPTBENCH_CHROMIUM')
    with api.sync_playwright() as pw:
        browser = pw.chromium.launch(executable_path=path, args=ARGS, timeout=120_000); p = browser.new_page(viewport=dict(width=1280, height=1100)); p.set_default_timeout(WAIT); p.trouble,p.lab = [],lab
        p.on('pageerror', lambda e: p.trouble.append(str(e))); p.on('console', lambda m: m.type=='error' and not harmless(m.text) and p.trouble.append(m.text))
        p.on('request', lambda q: q.url.startswith((lab[0], lab[0].replace('http','ws'), 'data:', 'blob:')) or p.trouble.append('asked for '+q.url))
        p.place = f'{lab[0]}/lab/workspaces/{secrets.token_hex(4)}/tree/panels_gallery.ipynb?token={lab[1]}'
        p.goto(p.place, wait_until='domcontentloaded'); ready(p)
        p.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
        yield p
        browser.close()

def harmless(text): return 'Failed to load resource' in text and '404' in text # Lab asks for a workspace and for translations that do not exist yet

def ready(p):
    p.wait_for_selector('.jp-NotebookPanel .jp-Notebook')
    p.wait_for_function('() => window.jupyterapp?.shell.currentWidget?.sessionContext?.isReady')

def panel(p, title):
    "The box of a panel, once it is there"
    box = p.locator('.pb-panel').filter(has=p.locator('.pb-title', has_text=title)).first
    for _ in range(WAIT//1000):                                           # Lab draws a cell only when it is near the screen
        if box.count(): break
        p.evaluate(f"() => {{ const nb = window.jupyterapp.shell.currentWidget.content; const i = nb.widgets.findIndex(c => c.model.sharedModel.source.includes({CELL[title]!r})); nb.activeCellIndex = i; nb.scrollToItem(i); }}"); time.sleep(1)
        failed = p.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"], .jp-RenderedText[data-mime-type="application/vnd.jupyter.error"]')
        if failed.count() and 'Error' in failed.first.inner_text(): raise AssertionError(failed.first.inner_text()[-1500:])
    box.scroll_into_view_if_needed(); return box

CELL = {'Template playground':'Playground(', 'Training monitor':'Monitor(', 'Prompt inspector':'Inspector(', 'Results explorer':'Explorer(', 'Method comparison':'Comparison('}

def pick(box, label, value): box.locator('.widget-dropdown').filter(has=box.page.locator('.widget-label', has_text=re.compile(f'^{label}$'))).locator('select').select_option(label=value)
def write(box, label, text): box.locator('.widget-textarea, .widget-text', has_text=label).locator('textarea, input').fill(text)
def until(p, condition, what='it'):
    "Wait for a Python condition"
    for _ in range(WAIT//250):
        if condition(): return
        p.wait_for_timeout(250)
    raise AssertionError(f'{what} did not come; the page shows {shown(p)}, and complained: {p.trouble}')
def shown(p):
    "What every panel shows, for whoever reads a failure"
    return p.evaluate('''() => [...document.querySelectorAll('.pb-panel')].map(b => ({title:b.querySelector('.pb-title')?.innerText, error:b.querySelector('.pb-error')?.innerText, captions:[...b.querySelectorAll('.pb-caption')].map(c => c.innerText),
        chosen:[...b.querySelectorAll('select')].map(s => [...s.selectedOptions].map(o => o.label).join('|').slice(0,80)), drawn:[...b.querySelectorAll('.pb-plot')].map(g => [g.dataset.drawn, (g._fullData||[]).length])}))''')
def problem(box): return box.evaluate("b => b.querySelector('.pb-error')?.innerText ?? ''") # read in one go: it may be gone a moment later
def cells(box, table=0): return box.evaluate("(b, n) => [...(b.querySelectorAll('table.pb')[n]?.querySelectorAll('tbody tr') ?? [])].map(r => [...r.cells].map(c => c.innerText))", table)
def drawn(box, n=0): return box.locator('.pb-plot').nth(n).evaluate('e => ({n:+(e.dataset.drawn||0), data:(e._fullData||[]).map(t => ({name:t.name, x:[...(t.x||[])], y:[...(t.y||[])], z:(t.z||[]).map(r => [...r])}))})')

def picture(p, box, name):
    "Pictures by day and by night"
    own = Path(__file__).parent/'shots'; shots = Path(os.environ.get('PROMPTBENCH_SCREENSHOTS') or own); shots.mkdir(parents=True, exist_ok=True)
    if shots==own: (own/'.gitignore').write_text('*\n')
    p.set_viewport_size(dict(width=1280, height=2000))
    for theme,words in (('light','JupyterLab Light'),('dark','JupyterLab Dark')):
        p.evaluate(f"() => window.jupyterapp.commands.execute('apputils:change-theme', {{theme:{words!r}}})")
        p.wait_for_function(f"() => document.body.dataset.jpThemeLight==='{str(theme=='light').lower()}'"); p.wait_for_timeout(1200)
        box.scroll_into_view_if_needed(); box.screenshot(path=shots/f'panel_{name}_{theme}.png')
        assert (shots/f'panel_{name}_{theme}.png').stat().st_size>15_000
    p.set_viewport_size(dict(width=1280, height=1100)); p.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', {theme:'JupyterLab Light'})"); p.wait_for_function("() => document.body.dataset.jpThemeLight==='true'")

@pytest.fixture(scope='module')
def world():
    from promptbench.data.suite import load_suite
    from promptbench.model.backbone import load_backbone
    return load_suite('microworld'),load_backbone('tiny')

def test_playground(page, world):
    from promptbench.lab.playground import answers, record_of, seen
    suite,backbone = world; box = panel(page, 'Template playground'); task = suite.task('entail/does_it_mean'); t = task.wording
    expected = lambda jinja=t.jinja, choices=t.answer_choices, i=0, rule='mean', **how: answers(backbone, seen(backbone, record_of(task, i), jinja, choices, **how), rule=rule, **how)
    said = lambda: [(r[0].lstrip('✓ '), r[1], r[3]) for r in cells(box)]
    as_text = lambda ranked: [(d['choice'], f"{d['probability']:.1%}", f"{d['logp']:.2f}") for d in ranked]
    until(page, lambda: said()==as_text(expected()), 'the first ranking')
    assert seen(backbone, record_of(task, 0), t.jinja, t.answer_choices).source==box.locator('.pb-source').inner_text()
    pick(box, 'rule', 'sum'); until(page, lambda: said()==as_text(expected(rule='sum')), 'the other rule'); pick(box, 'rule', 'mean')
    changed = t.jinja.replace('Yes or no?', 'True?'); write(box, 'template', changed); until(page, lambda: said()==as_text(expected(changed)), 'the ranking under the edited template')
    assert 'True?' in box.locator('.pb-source').inner_text() and said()!=as_text(expected())
    write(box, 'template', t.jinja+'{{'); until(page, lambda: 'must be Jinja' in problem(box), 'the error')              # shown, not swallowed
    picture(page, box, 'playground_error')
    write(box, 'template', changed); until(page, lambda: problem(box)=='' and said()==as_text(expected(changed)), 'the ranking after an error')   # and no kernel was restarted
    box.get_by_role('button', name='the original again').click(); until(page, lambda: said()==as_text(expected()), 'the original')
    write(box, 'example', '3'); box.locator('.widget-text', has_text='example').locator('input').press('Enter'); until(page, lambda: said()==as_text(expected(i=3)), 'another example')
    handle = box.locator('.widget-slider .noUi-handle'); handle.focus(); handle.press('Home'); until(page, lambda: box.locator('.pb-cut').count()==1 and 'cut off' in box.inner_text(), 'truncation')
    e = seen(backbone, record_of(task, 3), t.jinja, t.answer_choices, max_source=4); assert box.locator('.pb-cut').inner_text()==e.cut
    until(page, lambda: said()==as_text(expected(i=3, max_source=4)), 'the ranking of a cut source')
    picture(page, box, 'playground')
    pick(box, 'dataset', 'cause'); until(page, lambda: len(cells(box))==len(suite.tasks(dataset='cause')[0].examples('validation', 4)[3].choices) and 'cause' in str(suite.tasks(dataset='cause')[0]), 'another task')
    assert page.trouble==[]

def test_monitor(page):
    box = panel(page, 'Training monitor'); assert 'press Start' in box.inner_text() and not drawn(box)['data'] and not box.locator('.main-svg').count()   # no empty axes
    step = lambda: int(box.locator('.pb-step').inner_text().replace(',','')); state = lambda: box.locator('.pb-state').inner_text()
    assert (state(),step())==('ready',0); box.get_by_role('button', name='Start').click(); until(page, lambda: state()=='running' and step()>5, 'the first updates')
    until(page, lambda: drawn(box)['data'] and len(drawn(box)['data'][0]['x'])>5, 'the loss curve'); a = drawn(box)['n']; until(page, lambda: drawn(box)['n']>a, 'the next drawing')
    box.get_by_role('button', name='Pause').click(); until(page, lambda: state()=='paused', 'the pause'); page.wait_for_timeout(1500); held = step(); page.wait_for_timeout(1500); assert step()==held
    until(page, lambda: drawn(box)['data'][0]['x'][-1]==held, 'the last point'); before = drawn(box)['data']; assert 'Doctor' in box.inner_text() and 'updates' in box.locator('.pb-caption').inner_text()
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')"); page.wait_for_timeout(1500)
    page.goto(page.place, wait_until='domcontentloaded'); ready(page); box = panel(page, 'Training monitor')             # the page is loaded again; the kernel was not touched
    until(page, lambda: box.locator('.pb-step').count() and step()==held and drawn(box)['data']==before, 'the same figure after a reload')
    box.get_by_role('button', name='Go on').click(); until(page, lambda: step()>held and state()=='running', 'the run to go on'); until(page, lambda: 'held-out ARG' in box.locator('.pb-caption').inner_text(), 'a held-out ARG')
    picture(page, box, 'monitor'); box.get_by_role('button', name='Stop').click(); until(page, lambda: state() in ('stopped','done'), 'the stop')
    place = re.search(r'checkpoint in (\S+)', box.inner_text())[1]; card = (Path(place)/'card.json').read_text(); assert 'updates' in card and (Path(place)/'prompt.safetensors').exists()
    from promptbench.prompt.checkpoint import load_checkpoint
    assert len(load_checkpoint(place)[1])==3
    assert problem(box)=='' and page.trouble==[]

def kept(page, what): return next((page.lab[2]/'tmp').glob(f'*/{what}'))
def caption(box, n=0): return box.locator('.pb-caption').nth(n).inner_text()
def spot(page, box, n, trace, point):
    "Click a point of a figure with the mouse"
    plot = box.locator('.pb-plot').nth(n); plot.scroll_into_view_if_needed()
    x,y = plot.evaluate("""(g, [t,i]) => { const f = g._fullLayout, d = g._fullData[t], r = g.getBoundingClientRect();
        return [r.left+f._size.l+f.xaxis.d2p(d.x[i]), r.top+f._size.t+f.yaxis.d2p(d.y[i])]; }""", [trace,point])
    page.mouse.move(x-3, y-3); page.mouse.move(x, y); page.wait_for_timeout(300); page.mouse.down(); page.mouse.up()

def test_inspector(page, world):
    from promptbench.prompt.checkpoint import load_checkpoint
    from promptbench.prompt.neighbours import attention_mass, deep_norms, nearest_words
    suite,backbone = world; tasks = suite.tasks('eval', limit=1); box = panel(page, 'Prompt inspector'); bank = load_checkpoint(kept(page, 'shallow'))[1]; deep = load_checkpoint(kept(page, 'deep'))[1]
    words = lambda measure='cosine', **how: [', '.join(f'{w} {v:.2f}' for w,v in ws) for ws in nearest_words(backbone, bank, **how)[measure]]
    said = lambda: [r[-1] for r in cells(box)]; shown = lambda: drawn(box)['data'][0]['z'] if drawn(box)['data'] else None
    grid = lambda i, n=8, prompt=bank: [[round(float(m), 4) for m in g.mass] for _,g in attention_mass(backbone, tasks[i].examples('validation', n), prompt, index=i).groupby('slot', sort=False)]
    near = lambda a, b: a is not None and len(a)==len(b) and all(abs(x-y)<2e-3 for p,q in zip(a, b) for x,y in zip(p, q))
    until(page, lambda: said()==words(), 'the nearest words'); until(page, lambda: near(shown(), grid(0)), 'the attention')
    pick(box, 'measure', 'euclidean'); until(page, lambda: said()==words('euclidean'), 'the other measure')
    pick(box, 'task', tasks[3].name); until(page, lambda: said()==words('euclidean', index=3) and near(shown(), grid(3)), 'another task'); a = words('euclidean', index=3); assert a!=words('euclidean')
    handle = box.locator('.widget-slider', has_text='words').locator('.noUi-handle'); handle.focus(); handle.press('ArrowLeft'); until(page, lambda: said()==words('euclidean', index=3, k=4), 'fewer words')
    handle = box.locator('.widget-slider', has_text='examples').locator('.noUi-handle'); handle.focus(); handle.press('Home'); until(page, lambda: near(shown(), grid(3, 1)), 'one example')
    until(page, lambda: len(drawn(box, 1)['data'])>2, 'the map'); spot(page, box, 1, 0, 0); until(page, lambda: said()==words('euclidean', index=0, k=4), 'the task whose point was clicked')
    picture(page, box, 'inspector'); pick(box, 'prompt', 'deep'); norms = deep_norms(backbone, deep, 0); until(page, lambda: cells(box)==[[r.slot, f'{r.keys:.2f}', f'{r.values:.2f}'] for r in norms.itertuples()], 'the norms of a deep prompt')
    until(page, lambda: near(shown(), grid(0, 1, deep)), 'its attention'); picture(page, box, 'inspector_deep'); assert problem(box)=='' and page.trouble==[]

def test_explorer(page, world):
    from promptbench.lab.explorer import Texts, explored, wrong
    from promptbench.stats.query import results
    store = kept(page, 'results'); rows,ps = results(store).reset_index(drop=True),results(store, table='predictions'); box = panel(page, 'Results explorer')
    points = lambda: sorted(round(y, 4) for t in drawn(box)['data'] if not t['name'].startswith('mean of') for y in t['y']); expected = lambda **how: sorted(round(float(v), 4) for v in explored(rows, **how).y)
    until(page, lambda: points()==expected(), 'the points'); pick(box, 'y axis', 'gain over chance'); until(page, lambda: points()==expected(y='gain over chance'), 'the other axis')
    page.evaluate("() => { const lib = globalThis.__promptbench.lib, real = lib.react; lib.react = (...a) => { lib.react = real; real(...a); return new Promise(() => {}); }; }")   # the next drawing never says that it ended
    traces = lambda: {t['name'] for t in drawn(box)['data']}; pick(box, 'x axis', 'cluster'); pick(box, 'colour', 'dataset'); until(page, lambda: set(rows.dataset)<=traces(), 'the other colours'); pick(box, 'colour', 'prompt')
    box.locator('.widget-select-multiple', has_text='dataset').locator('select').select_option(label=['entail','cause']); until(page, lambda: points()==expected(y='gain over chance', dataset=['entail','cause']), 'the filter')
    pick(box, 'x axis', 'dataset'); until(page, lambda: 'none' in traces(), 'the colours of prompts'); page.wait_for_timeout(800)
    d = drawn(box)['data']; t = next(i for i,x in enumerate(d) if not x['name'].startswith('mean of')); spot(page, box, 0, t, 0); until(page, lambda: box.locator('.pb-template').count()==1, 'the template of the point')
    row = next(r for _,r in explored(rows, y='gain over chance', colour='prompt', dataset=['entail','cause']).iterrows() if r.colour==d[t]['name'] and abs(r.y-d[t]['y'][0])<1e-3)
    texts = Texts(world[0]); w = wrong(ps, row, texts=texts); assert box.locator('.pb-template').inner_text()==texts.template(row.suite, row.dataset, row.template)
    until(page, lambda: [(c[0],c[1],c[2],c[4]) for c in cells(box)]==[(x.instance, x.pred, x.gold, x.source) for x in w.itertuples()], 'the wrong answers'); until(page, lambda: caption(box, 1).startswith(row.dataset), 'the figure of the dataset')
    picture(page, box, 'explorer'); box.locator('.widget-select-multiple', has_text='method').locator('select').select_option([]); until(page, lambda: 'no rows are left' in problem(box), 'the error of an empty choice')
    box.locator('.widget-select-multiple', has_text='method').locator('select').select_option(label=['none']); until(page, lambda: problem(box)=='', 'the panel after an error'); assert page.trouble==[]

def test_comparison(page):
    from promptbench.lab.comparison import cell_name, disagreements, paired, plot_paired
    from promptbench.stats.query import results
    from promptbench.stats.results import CELL
    ps = results(kept(page, 'compared'), table='predictions'); cells_ = ps[CELL].drop_duplicates().to_dict('records'); box = panel(page, 'Method comparison'); title = lambda a, b: plot_paired(paired(ps, a, b), a, b).layout.title.text
    count = lambda: int(box.locator('.pb-count').inner_text().replace(',','') if box.locator('.pb-count').count() else -1); b,c,a = sorted(cells_, key=lambda c: ['none','shallow','deep'].index(c['prompt']))
    told = paired(ps, a, b); assert told.lo[0]<told.hi[0]<0 or 0<told.lo[0]              # there is a difference to see, and one dataset where there is none
    assert sum((told.lo>0)|(told.hi<0))>=3
    until(page, lambda: caption(box)==title(a, b) and count()==len(disagreements(ps, a, b)), 'the first comparison'); pick(box, 'second', cell_name(c)); until(page, lambda: caption(box)==title(a, c), 'another run'); assert title(a, c)!=title(a, b)
    until(page, lambda: sorted(round(x, 3) for t in drawn(box)['data'] for x in t['x'])==sorted(paired(ps, a, c).estimate.round(3)), 'the differences')
    pick(box, 'who is right', 'second'); until(page, lambda: count()==len(disagreements(ps, a, c, better='second')), 'one side')
    pick(box, 'dataset', 'guess'); until(page, lambda: count()==len(disagreements(ps, a, c, better='second', dataset='guess')), 'one dataset'); pick(box, 'dataset', 'all'); pick(box, 'who is right', 'both'); picture(page, box, 'comparison')
    pick(box, 'second', cell_name(a)); until(page, lambda: 'two different runs' in problem(box), 'the error of equal sides'); pick(box, 'second', cell_name(b)); until(page, lambda: problem(box)=='' and caption(box)==title(a, b), 'the panel after an error')
    assert page.trouble==[]
