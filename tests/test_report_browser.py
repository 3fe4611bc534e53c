"The report in a real browser, offline: no errors, no requests, legends and filters work, both themes, laptop and phone; pictures of its figures"
import os, re
from pathlib import Path
import pytest
import synth
from promptbench.stats import bootstrap as B; from promptbench.stats import claims as C; from promptbench.show import frame as W; from promptbench.show import plots as P; from promptbench.show import report as R

ARGS = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()
SMALL = [('nli','entail',3,3), ('nli','bank',2,2), ('completion','<b>scene',4,2)]

@pytest.fixture(scope='module')
def report(tmp_path_factory):
    "A small one; with PROMPTBENCH_REPORT=FILE and PROMPTBENCH_SCREENSHOTS=FOLDER, pictures of a real one"
    if os.environ.get('PROMPTBENCH_REPORT'): return Path(os.environ['PROMPTBENCH_REPORT']).resolve()
    p = synth.predictions(seeds=(0,1), n=30, datasets=SMALL); r = synth.rows(p); rep = B.replicate(p, rows=r, n=300)
    return R.write_report(tmp_path_factory.mktemp('report'), rows=r, predictions=p, table=B.interval_table(r, p, methods=['none','P-only','T-only','T+P'], replicates=rep), claims=C.judge(r, p, replicates=rep),
                          curves=synth.curves(steps=60, tasks=3), cards=synth.cards(), settings=synth.settings(command='promptbench table1 --out "a <b> c"'))

@pytest.fixture(scope='module')
def browser():
    api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed'); path = W.find_browser()
    if path is None or not Path(path).exists(): pytest.skip('no Chromium found; install it or set PROMPTBENCH_CHROMIUM')
    with api.sync_playwright() as pw:
        b = pw.chromium.launch(executable_path=path, args=ARGS, timeout=120_000); yield b; b.close()

def opened(browser, report, scheme, width):
    "The report with the network cut; whatever goes wrong is collected in `page.trouble`"
    page = browser.new_context(color_scheme=scheme, viewport=dict(width=width, height=900), offline=True).new_page(); page.set_default_timeout(60_000); page.trouble = []
    page.on('console', lambda m: m.type in ('error','warning') and page.trouble.append(m.text)); page.on('pageerror', lambda e: page.trouble.append(str(e)))
    page.on('request', lambda q: q.url.startswith(('data:','blob:')) or q.url==report.as_uri() or page.trouble.append('asked for '+q.url)); page.on('requestfailed', lambda q: page.trouble.append('failed '+q.url))
    page.goto(report.as_uri(), wait_until='domcontentloaded'); page.wait_for_selector('html[data-ready]', state='attached'); return page

@pytest.fixture(params=[('light',1280),('dark',1280),('light',390),('dark',390)], ids=lambda p: f'{p[0]}-{p[1]}')
def page(request, browser, report):
    page = opened(browser, report, *request.param); page.look = request.param; yield page
    assert page.trouble==[]; page.context.close()

def visible(page, fig='accuracy'): return page.evaluate(f"document.getElementById('plot-{fig}')._fullData.filter(t => t.visible === true).map(t => t.legendgroup || t.name)")
def background(page): return page.evaluate("getComputedStyle(document.body).backgroundColor")
def ticks(page): return page.evaluate("document.getElementById('plot-accuracy').layout.yaxis.ticktext")

def test_opens_offline_and_is_worth_a_look(page, tmp_path):
    scheme,width = page.look; assert page.locator('.answer').get_attribute('data-verdict') in C.VERDICTS and page.locator('.findings li').count()>=4
    assert [t for t in page.locator('.brief dt').all_inner_texts() if t!='Budget']==['Compared','On','Measure','Intervals','Seeds']
    assert page.locator('.plot .main-svg').count()>=7 and page.locator('b').count()==0          # names that look like tags stay text
    assert page.evaluate('document.documentElement.scrollWidth<=innerWidth')                    # nothing sticks out sideways
    shots = Path(os.environ.get('PROMPTBENCH_SCREENSHOTS') or tmp_path); shots.mkdir(parents=True, exist_ok=True); place = shots/f'report_{scheme}_{width}.png'
    page.screenshot(path=shots/f'report_{scheme}_{width}_top.png'); page.screenshot(path=place, full_page=True); assert place.stat().st_size>50_000
    dark = sum(map(int, re.findall(r'\d+', background(page))[:3]))<200; assert dark==(scheme=='dark')
    mark = page.evaluate("getComputedStyle(document.querySelector('#table1 .mark')).fill"); assert (mark=='rgb(62, 65, 69)')==(scheme=='light')

def test_a_legend_entry_hides_a_method_and_the_boxes_agree(browser, report):
    page = opened(browser, report, 'light', 1280); before = visible(page); assert 'T+P' in before and 'T+P' in visible(page, 'gain')
    page.locator('#plot-accuracy .legendtoggle').last.click(); page.wait_for_function("document.getElementById('plot-accuracy')._fullData.every(t => t.name !== 'T+P' || t.visible === 'legendonly')")
    assert visible(page)==[t for t in before if t!='T+P'] and 'T+P' not in visible(page, 'gain')                       # both figures of the section follow
    box = page.locator('input[data-hides][value="T+P"]'); assert not box.is_checked()
    page.select_option('#shots_', '0'); assert 'T+P' not in visible(page)                                             # hidden stays hidden when the setting changes
    page.locator('#theme').click(); assert 'T+P' not in visible(page)                                                 # and when the theme does
    box.focus(); page.keyboard.press('Space'); assert box.is_checked() and 'T+P' in visible(page) and 'T+P' in visible(page, 'gain')
    page.locator('#plot-gain .legendtoggle').nth(1).dblclick(); page.wait_for_function("document.querySelectorAll('input[data-hides]:checked').length === 1")   # two clicks: this method alone
    assert set(visible(page))=={page.locator('input[data-hides]:checked').get_attribute('value'),'chance','commonest answer'}   # baselines stay
    assert 'T+P' in visible(page, 'table1') and page.trouble==[]; page.context.close()

def test_filters_change_what_is_shown(browser, report):
    page = opened(browser, report, 'dark', 1280); drawn = lambda fig: page.evaluate(f"JSON.stringify(document.getElementById('plot-{fig}')._fullData.map(t => t.x))"); caption = lambda fig: page.locator(f'#caption-{fig}').inner_text()
    assert ticks(page)==['entail','bank','<b>scene'] and caption('accuracy').startswith('Deep prompt, 16 shots'); a,g = drawn('accuracy'),drawn('gain')
    page.evaluate("Plotly.Fx.hover('plot-accuracy', [{curveNumber:document.getElementById('plot-accuracy').data.findIndex(t => t.name==='T+P' && t.showlegend===false), pointNumber:0}])")
    said = page.locator('#plot-accuracy .hoverlayer .hovertext').first.text_content(); assert all(w in said for w in ('T+P','template entail_a','n = 60','chance 33.3%','commonest answer'))
    page.select_option('#dataset', 'bank'); assert ticks(page)==['bank_a','bank_b'] and drawn('gain')==g
    page.select_option('#dataset', ''); page.select_option('#prompt', 'shallow'); page.select_option('#shots_', '0')
    assert caption('accuracy').startswith('Shallow prompt, 0 shots') and caption('gain').startswith('Shallow prompt, 0 shots') and drawn('accuracy')!=a and drawn('gain')!=g
    assert page.locator('#plot-accuracy').get_attribute('aria-label').startswith('Shallow prompt, 0 shots')
    steps = drawn('curve_pretrain'); page.select_option('#against', 'tokens'); assert drawn('curve_pretrain')!=steps and page.evaluate("document.getElementById('plot-curve_pretrain').layout.xaxis.title.text")=='tokens seen'
    first = background(page); page.locator('#theme').focus(); page.keyboard.press('Enter'); assert background(page)!=first            # the toggle works from the keyboard
    assert page.evaluate("document.getElementById('plot-table1').layout.font.color")==page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--soft').trim()")
    assert page.trouble==[]; page.context.close()

def test_reads_well_without_eyes_or_mouse(browser, report):
    page = opened(browser, report, 'light', 390)
    page.keyboard.press('Tab'); assert page.evaluate('document.activeElement.className')=='skip'
    page.keyboard.press('Tab'); assert page.evaluate("document.activeElement.id==='theme' && getComputedStyle(document.activeElement).outlineStyle!=='none'")  # focus can be seen
    assert page.evaluate("[...document.querySelectorAll('table')].every(t => t.caption && t.caption.textContent.trim())")
    assert page.evaluate("[...document.querySelectorAll('th')].every(t => t.scope)") and page.evaluate("[...document.querySelectorAll('.plot')].every(p => p.getAttribute('role')==='img' && p.getAttribute('aria-label').length>40)")
    assert page.evaluate("[...document.querySelectorAll('select,input')].every(s => s.labels.length===1)") and page.evaluate("document.documentElement.lang")=='en'
    panels = page.evaluate("(l => [l.yaxis.domain, l.yaxis2.domain])(document.getElementById('plot-slope').layout)"); assert panels[0][0]>panels[1][1]                # panels are stacked
    assert page.trouble==[]; page.context.close()

def test_pictures_and_pages_of_figures(report, browser, tmp_path):
    names = set(W.figures_of(report)); assert {'table1','slope','claims','accuracy_deep_16','accuracy_deep_16_bank','gain_shallow_0','curve_tune','curve_pretrain_tokens'}<=names
    fig = P.plot_curves(synth.curves(steps=20), 'pretrain')
    svg = W.save_figure(fig, tmp_path/'c.svg').read_text(encoding='utf8'); assert svg.startswith('<svg') and 'Continued pretraining' in svg and 'http' not in svg.replace('http://www.w3.org','')
    single = W.save_figure(fig, tmp_path/'c.html'); page = opened(browser, single, 'dark', 1280); assert page.locator('#plot-figure .main-svg').count()>=1 and page.trouble==[]; page.context.close()

def test_every_figure_of_a_report_as_a_file(report, browser, tmp_path):
    small = tmp_path/'small.html'; figs = {k:v for k,v in W.figures_of(report).items() if k in ('slope','claims','gain_deep_16')}; small.write_text(W.page('x', '', figures=figs, label='x'), encoding='utf8')
    out = W.save_figures(small, tmp_path/'figs', formats=['png','html'], theme='dark', width=500, scale=1); assert sorted(p.name for p in out)==sorted(f'{k}.{e}' for k in figs for e in ('png','html')) and all(p.stat().st_size>2000 for p in out)
    png = (tmp_path/'figs'/'slope.png').read_bytes(); assert png[:8]==b'\x89PNG\r\n\x1a\n' and int.from_bytes(png[16:20], 'big')==500

def test_small_enough_and_safe(report):
    html = report.read_text(encoding='utf8'); assert len(html.encode())<6_000_000 and html.count('plotly.js v')==1
    own = html[:html.index('<script type="application/json"')]; assert '<b>' not in own.replace('&lt;b&gt;','') and 'http://' not in own and 'https://' not in own
