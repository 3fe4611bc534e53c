"The report in a real browser, offline: no errors, no requests, controls work, both themes"
import os, shutil
from pathlib import Path
import pytest
import synth
from promptbench import claims as C, metrics as M, report as P

CHROMIUM = os.environ.get('PROMPTBENCH_CHROMIUM') or next((p for p in ('/usr/bin/chromium', shutil.which('chromium'), shutil.which('chromium-browser'), shutil.which('google-chrome')) if p and Path(p).exists()), None)
ARGS = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()
SMALL = [('nli','entail',3,3), ('nli','bank',2,2), ('completion','<b>scene',4,2)]

@pytest.fixture(scope='module')
def report(tmp_path_factory):
    p = synth.predictions(seeds=(0,1), n=40, datasets=SMALL); r = synth.rows(p); rep = M.replicate(p, rows=r, n=500)
    return P.write_report(tmp_path_factory.mktemp('report'), rows=r, predictions=p, table=M.table1(r, p, methods=['none','P-only','T-only','T+P'], replicates=rep), claims=C.judge(r, p, replicates=rep),
                          curves=synth.curves(steps=60), cards=synth.cards(), settings=synth.settings(command='promptbench table1 --out "a <b> c"'))

@pytest.fixture(scope='module')
def browser():
    api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    if CHROMIUM is None: pytest.skip('no Chromium found; install it or set PROMPTBENCH_CHROMIUM')
    with api.sync_playwright() as pw:
        b = pw.chromium.launch(executable_path=CHROMIUM, args=ARGS, timeout=120_000); yield b; b.close()

@pytest.fixture(params=['light','dark'])
def page(request, browser, report):
    context = browser.new_context(color_scheme=request.param, viewport=dict(width=1100, height=900), offline=True); page = context.new_page(); page.set_default_timeout(120_000)
    page.trouble,page.scheme = [],request.param
    page.on('console', lambda m: m.type in ('error','warning') and page.trouble.append(m.text)); page.on('pageerror', lambda e: page.trouble.append(str(e)))
    page.on('request', lambda q: q.url.startswith(('data:','blob:')) or q.url==report.as_uri() or page.trouble.append('asked for '+q.url)); page.on('requestfailed', lambda q: page.trouble.append('failed '+q.url))
    page.goto(report.as_uri(), wait_until='domcontentloaded'); page.wait_for_selector('html[data-ready]', state='attached'); yield page
    assert page.trouble==[]; context.close()

def visible(page): return page.evaluate("document.getElementById('plot-accuracy')._fullData.filter(t => t.visible === true).length")
def background(page): return page.evaluate("getComputedStyle(document.body).backgroundColor")

def test_opens_and_works_offline(page, report, tmp_path):
    assert 'study' in page.locator('.answer').inner_text() and page.locator('.answer').get_attribute('data-verdict') in C.VERDICTS
    assert page.locator('.plot .main-svg').count()>=6 and page.locator('b').count()==0          # names that look like tags stay text
    wide = page.evaluate('[document.documentElement.scrollWidth, innerWidth]'); assert wide[0]<=wide[1]
    before = visible(page); page.locator('#plot-accuracy .legendtoggle').last.click(); page.wait_for_function(f"document.getElementById('plot-accuracy')._fullData.filter(t => t.visible === true).length < {before}")
    ticks = lambda: page.evaluate("document.getElementById('plot-accuracy').layout.yaxis.ticktext")
    caption = page.locator('#caption-accuracy').inner_text(); assert ticks()==['entail','bank','<b>scene']
    page.select_option('#dataset', 'bank'); assert ticks()==['bank_a','bank_b']
    page.select_option('#setting', 'shallow|0'); page.select_option('#dataset', ''); assert page.locator('#caption-accuracy').inner_text()!=caption and page.locator('#caption-accuracy').inner_text().startswith('Shallow prompt, 0 shots')
    shots = Path(os.environ.get('PROMPTBENCH_SCREENSHOTS') or tmp_path); shots.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=shots/f'report_{page.scheme}.png', full_page=True); assert (shots/f'report_{page.scheme}.png').stat().st_size>50_000
    first = background(page); page.locator('#theme').focus(); page.keyboard.press('Enter'); assert background(page)!=first            # the toggle works from the keyboard
    assert page.evaluate("document.getElementById('plot-table1').layout.font.color")==page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--soft').trim()")
    page.locator('#theme').click(); assert background(page)==first
    page.locator('#plot-table1 .legendtoggle').first.click(); page.wait_for_function("document.getElementById('plot-table1')._fullData[0].visible === 'legendonly'")
    page.locator('#theme').click(); assert page.evaluate("document.getElementById('plot-table1')._fullData[0].visible")=='legendonly'   # what is hidden stays hidden

def test_reads_well_without_eyes_or_mouse(browser, report):
    page = browser.new_page(viewport=dict(width=390, height=800)); page.set_default_timeout(120_000); page.goto(report.as_uri(), wait_until='domcontentloaded'); page.wait_for_selector('html[data-ready]', state='attached')
    assert page.evaluate('document.documentElement.scrollWidth<=innerWidth')                                                       # a phone need not scroll sideways
    page.keyboard.press('Tab'); assert page.evaluate('document.activeElement.className')=='skip'
    assert page.evaluate("[...document.querySelectorAll('table')].every(t => t.caption && t.caption.textContent.trim())")
    assert page.evaluate("[...document.querySelectorAll('th')].every(t => t.scope)") and page.evaluate("[...document.querySelectorAll('.plot')].every(p => p.getAttribute('role')==='img' && p.getAttribute('aria-label').length>40)")
    assert page.evaluate("[...document.querySelectorAll('select')].every(s => s.labels.length===1)") and page.evaluate("document.documentElement.lang")=='en'
    page.close()

def test_small_enough_and_safe(report):
    html = report.read_text(encoding='utf8'); assert len(html.encode())<6_000_000 and html.count('plotly.js v')==1
    own = html[:html.index('<script type="application/json"')]; assert '<b>' not in own.replace('&lt;b&gt;','') and 'http://' not in own and 'https://' not in own
