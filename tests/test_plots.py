"Figures show what the tables hold, survive little data, and keep one colour-blind safe look"
import itertools, json, os
import numpy as np, pandas as pd, pytest
import synth
from promptbench.base.catalogue import METHODS
from promptbench.show import findings as F; from promptbench.stats import metrics as M; from promptbench.show import frame as W; from promptbench.show import plots as P; from promptbench.show import report as R; from promptbench.show import look as S
from promptbench.base.core import UserError

SMALL = [('nli','entail',3,3), ('nli','bank',2,2), ('completion','scene',4,2)]
CELLS = [('none','shallow',0), ('none','deep',0), ('none','shallow',16), ('T-only','shallow',0), ('T-only','deep',0), ('T-only','shallow',16), ('T-only','deep',16), ('T+P','shallow',0), ('T+P','shallow',16), ('T+P','deep',0), ('T+P','deep',16)]

@pytest.fixture(scope='module')
def rows(): return synth.rows(synth.predictions(seeds=(0,1), n=40, datasets=SMALL))

@pytest.fixture(scope='module')
def table():
    g = np.random.default_rng(5); a = g.uniform(-5, 60, len(CELLS))
    return pd.DataFrame([dict(method=m, prompt=p, shots=k, arg=v, lo=v-w, hi=v+w, seeds=2, star=m!='T+P' and k==0) for (m,p,k),v,w in zip(CELLS, a, g.uniform(1, 6, len(CELLS)))])

def claim(id, verdict, est, relation='greater', margin=None, p=.01, **more):
    return dict(claim=id, text=f'text of {id}', verdict=verdict, estimate=est, lo=est-2, hi=est+2, p=p, relation=relation, margin=margin, left='T+P, deep, 16 shots', right='T-only, deep, 16 shots', n_instances=90, seeds=2)|more

@pytest.fixture(scope='module')
def judged():
    nan = float('nan')
    return pd.DataFrame([claim('C1','holds',5), claim('C2','fails',-6,p=.04), claim('C3','undecided',1,'equal',2), claim('C4','holds',.1,'equal',4), claim('C5','not run',nan)])

def markers(fig, hollow=False): return [t for t in fig.data if t.mode!='lines' and t.marker.symbol is not None and str(t.marker.symbol).endswith('-open')==hollow]
def named(fig, name): return next(t for t in fig.data if t.name==name and t.showlegend is not False)

# --- what is drawn is what the table holds ---------------------------------------------------------------------------
def test_table1_draws_every_cell_with_its_interval(table):
    fig = P.plot_table1(table)
    for m,d in table.groupby('method', sort=False):
        t = named(fig, m); assert list(t.x)==d['arg'].tolist()
        np.testing.assert_allclose(np.array(t.x)-t.error_x.arrayminus, d.lo); np.testing.assert_allclose(np.array(t.x)+t.error_x.array, d.hi)
    assert len({y for t in fig.data for y in t.y})==len(table)                                  # no two cells on one row

def test_slope_draws_every_cell_once_per_panel(table):
    fig = P.plot_slope(table); shown = sorted(round(y, 6) for t in fig.data for y in t.y)
    assert shown==sorted(table['arg'].round(6)) and {t.xaxis for t in fig.data}=={'x','x2'}

def test_accuracy_means_and_templates(rows):
    fig = P.plot_accuracy(rows, 'deep', 16); d = rows[(rows.prompt=='deep')&(rows.shots==16)]
    for m,g in d.groupby('method'):
        want = g.groupby(['dataset','template'], sort=False).value.mean(); got = named(fig, m); small = next(t for t in fig.data if t.name==m and t.showlegend is False)
        np.testing.assert_allclose(sorted(got.x), sorted(want.groupby('dataset').mean()), atol=1e-5); np.testing.assert_allclose(sorted(small.x), sorted(want), atol=1e-5)
    text = named(fig, 'T+P').text[0]; assert all(w in text for w in ('T+P','n = ','chance 33.3%','commonest answer','3 templates','2 seeds'))
    assert 'template entail_a' in next(t for t in fig.data if t.name=='T+P' and t.showlegend is False).text[0]

def test_accuracy_of_one_dataset_shows_its_templates(rows):
    fig = P.plot_accuracy(rows, 'deep', 16, dataset='entail'); d = rows[(rows.prompt=='deep')&(rows.shots==16)&(rows.dataset=='entail')]
    assert list(fig.layout.yaxis.ticktext)==['entail_a','entail_b','entail_c']
    np.testing.assert_allclose(named(fig, 'T+P').x, d[d.method=='T+P'].groupby('template', sort=False).value.mean(), atol=1e-5)

def test_gains_agree_with_the_metrics(rows):
    g = P.gains(rows, 'deep', 16); d = rows[(rows.prompt=='deep')&(rows.shots==16)]
    for base in ('chance','majority'):
        want = M.arg_table(d, baseline=base).set_index('method')['arg']; got = g[g.dataset=='ARG'].set_index('method')[base]
        np.testing.assert_allclose(got[want.index], want)
    fig = P.plot_gain(rows, 'deep', 16)
    for m in d.method.unique():
        e = g[g.method==m]; solid = next(t for t in markers(fig) if t.name==m); open_ = next(t for t in markers(fig, hollow=True) if t.name==m)
        np.testing.assert_allclose(solid.x, e.chance, atol=1e-3); np.testing.assert_allclose(open_.x, e.majority, atol=1e-3); assert list(solid.y)==list(open_.y)

def test_a_constant_answer_gains_over_chance_and_nothing_over_itself(rows):
    g = P.gains(rows.assign(value=rows.majority), 'deep', 16); a = g[g.dataset=='ARG'].iloc[0]
    assert a.chance>5 and abs(a.majority)<1e-9 and abs(a.chance-a.constant)<1e-9

def test_claims_draw_estimate_interval_side_and_verdict(judged):
    fig = P.plot_claims(judged); run = judged[judged.verdict!='not run'].reset_index(drop=True)
    got = {int(y):(t.name, x, lo, hi) for t in fig.data for x,y,lo,hi in zip(t.x, t.y, t.error_x.arrayminus, t.error_x.array)}
    assert got=={i:(c.verdict, c.estimate, c.estimate-c.lo, c.hi-c.estimate) for i,c in enumerate(run.itertuples())}
    assert [(s.x0, s.x1) for s in fig.layout.shapes][2:]==[(-2,2),(-4,4)]                       # margins are bands
    assert len({t.marker.symbol for t in fig.data})==len(fig.data)                              # colour is not the only carrier

def test_claims_after_holm(judged):
    strict = F.corrected(judged.assign(p_holm=[.02,.12,.9,.9,float('nan')])); assert strict.tolist()==['holds','undecided','undecided','undecided']
    fig = P.plot_claims(judged.assign(p_holm=[.02,.12,.9,.9,float('nan')])); assert ['†' in t for t in fig.layout.yaxis.ticktext]==[False,True,False,True]
    assert 'after Holm’s correction 1 hold and 0 fail' in fig.layout.title.text and 'after correction: undecided' in next(t for t in fig.data if t.name=='fails').text[0]
    assert 'Holm' not in P.plot_claims(judged).layout.title.text

def test_curves_thin_and_bold():
    c = synth.curves(steps=80, tasks=5); fig = P.plot_curves(c, 'tune'); d = c[(c.stage=='tune')&(c.method=='T+P')&(c.prompt=='deep')]; bold = named(fig, 'T+P, deep')
    np.testing.assert_allclose(bold.y, d.groupby('step').loss.mean(), atol=1e-4); thin = next(t for t in fig.data if t.name=='T+P, deep' and t.showlegend is False)
    assert thin.x.count(None)==5 and thin.line.width<1<bold.line.width and thin.line.color==bold.line.color
    against = P.plot_curves(c, 'pretrain', x='tokens'); assert max(named(against, 'T+P, deep').x)>100_000 and against.layout.xaxis.title.text=='tokens seen'

# --- little data -----------------------------------------------------------------------------------------------------
def every(rows, table, judged, curves):
    "Every figure of the page; the report must manage without a traceback too"
    settings = S.settings_of(table); p,k = settings[-1]
    return [P.plot_table1(table), P.plot_slope(table), P.plot_claims(judged), P.plot_accuracy(rows, p, k), P.plot_gain(rows, p, k), *[P.plot_curves(curves, s) for s in curves.stage.unique()]]

@pytest.mark.parametrize('keep', [dict(method='T+P'), dict(seed=0), dict(prompt='deep'), dict(dataset='bank'), dict(shots=16)], ids=lambda k: '-'.join(map(str, *k.items())))
def test_partial_tables_give_figures_and_a_report(keep, rows, table, judged, tmp_path):
    (col,value), = keep.items(); cut = lambda d: d[d[col]==value] if col in d else d
    c = cut(synth.curves(steps=20, seeds=(0,))); r,t = cut(rows),cut(table).reset_index(drop=True)
    assert all(f.layout.title.text for f in every(r, t, judged, c))
    out = R.write_report(tmp_path, rows=r, predictions=r[:0], table=t, claims=judged, curves=c, cards=[], settings=dict(suite='microworld'))
    assert 'Traceback' not in out.read_text(encoding='utf8')

def test_empty_or_wrong_tables_are_errors_that_say_what_is_missing(rows, table, judged):
    for draw,what in ((P.plot_table1,'Table 1 has no rows'), (P.plot_slope,'Table 1 has no rows'), (P.plot_claims,'claims'), (lambda t: P.plot_curves(t, 'tune'),'missing')):
        with pytest.raises(UserError, match=what): draw(table[:0] if draw is not P.plot_claims else table)
    with pytest.raises(UserError, match='there are'): P.plot_accuracy(rows, 'deep', 3)
    with pytest.raises(UserError, match="missing \\['majority'\\]"): P.plot_gain(rows.drop(columns='majority'), 'deep', 16)
    with pytest.raises(UserError, match='has no rows'): P.plot_accuracy(rows[:0], 'deep', 16)
    with pytest.raises(UserError, match='dataset must be one of'): P.plot_accuracy(rows, 'deep', 16, dataset='nothing')

def test_a_setting_that_was_not_run_says_so_on_the_page(rows, table, judged):
    figs = R.figures(rows[rows.prompt!='deep'], table, judged, None, None, {}); assert figs['accuracy']['deep']['16']['']['caption'].startswith('Nothing to show: no rows with prompt')
    json.dumps(figs, allow_nan=False)

def test_unknown_baselines_are_left_out(rows):
    bare = rows.assign(majority=float('nan')); assert 'commonest answer' not in [t.name for t in P.plot_accuracy(bare, 'deep', 16).data]
    json.dumps(P.accuracy_spec(bare, 'deep', 16), allow_nan=False); assert not markers(P.plot_gain(bare, 'deep', 16), hollow=True)

# --- words come from the data ----------------------------------------------------------------------------------------
def test_findings_follow_the_data(rows, table, judged):
    said = ' '.join(F.findings(rows, table, judged, {})); best = table[table.shots==16].sort_values('arg').iloc[-1]
    assert f'{best.method} with a {best.prompt} prompt ({best["arg"]:.1f}' in said
    other = table.assign(arg=table['arg'].where(table.method!='none', 99.)); assert 'none with a shallow prompt (99.0' in ' '.join(F.findings(rows, other, judged, {}))
    assert 'Seeds of one cell' not in ' '.join(F.findings(rows[rows.seed==0], table, judged, {})) and 'No method beats' in ' '.join(F.findings(rows.assign(value=rows.chance), table, judged, {}))

def test_brief_names_reading_intervals_and_seeds(rows, table):
    b = dict(F.brief(rows, table, dict(suite='p3', backbone='x', by='templates', samples=2000))); assert 'every template counts' in b['Measure'] and '2,000 times' in b['Intervals'] and 'not over seeds' in b['Intervals'] and b['Seeds'].startswith('2 (0, 1)')
    pooled = dict(F.brief(rows, table, dict(groups=dict(entail='a', bank='a')))); assert '2 groups of datasets' in pooled['Measure']
    assert 'instances and seeds' in dict(F.brief(rows, table, dict(resample=['instances','seeds'])))['Intervals']

# --- one look --------------------------------------------------------------------------------------------------------
EYES = dict(normal=np.eye(3), protan=np.array([[.152286,1.052583,-.204868],[.114503,.786281,.099216],[-.003882,-.048116,1.051998]]),       # Machado, Oliveira, Fernandes 2009, severity 1
            deutan=np.array([[.367322,.860646,-.227968],[.280085,.672501,.047413],[-.011820,.042940,.968881]]))
LMS = np.array([[.4122214708,.5363325363,.0514459929],[.2119034982,.6806995451,.1073969566],[.0883024619,.2817188376,.6299787005]])        # Oklab
LAB = np.array([[.2104542553,.7936177850,-.0040720468],[1.9779984951,-2.4285922050,.4505937099],[.0259040371,.7827717662,-.8086757660]])

def linear(c): v = np.array([int(c[i:i+2],16)/255 for i in (1,3,5)]); return np.where(v<=.04045, v/12.92, ((v+.055)/1.055)**2.4)
def seen(c, eye): return LAB@np.cbrt(LMS@np.clip(EYES[eye]@linear(c), 0, 1))
def closest(colours, eye): return min(np.linalg.norm(seen(a, eye)-seen(b, eye)) for a,b in itertools.combinations(colours, 2))
def contrast(a, b): hi,lo = sorted((float(linear(c)@[.2126,.7152,.0722]) for c in (a,b)), reverse=True); return (hi+.05)/(lo+.05)

@pytest.mark.parametrize('eye', EYES)
@pytest.mark.parametrize('theme', ['light','dark'])
@pytest.mark.parametrize('which', ['METHODS','VERDICT'])
def test_colours_stay_apart_for_every_eye(eye, theme, which):
    colours = [S.night(c) if theme=='dark' else c for c,_ in (S.VERDICT.values() if which=='VERDICT' else map(S.look, METHODS))]
    assert closest(colours, eye)>.08, 'a method of the package needs a `day` and a `night` apart from the others; Okabe and Ito with a grey reach 0.03'
    assert min(contrast(c, '#16171a' if theme=='dark' else '#fcfbf8') for c in colours)>=3

def test_the_check_of_colours_can_fail(): assert closest(['#808080','#009E73'], 'deutan')<.08<closest(['#808080','#009E73'], 'normal')

def test_a_method_keeps_its_look_in_every_figure(rows, table):
    where = {}
    for f in (P.plot_table1(table), P.plot_slope(table), P.plot_accuracy(rows, 'deep', 16), P.plot_gain(rows, 'deep', 16)):
        for t in markers(f): where.setdefault(t.name, set()).add((t.marker.color, t.marker.symbol))
    assert {m for m in where if m in METHODS}=={'none','T-only','T+P'} and all(looks=={S.look(m)} for m,looks in where.items() if m in METHODS)
    c = synth.curves(steps=12, seeds=(0,)); assert {(t.name.split(',')[0], t.line.color) for t in P.plot_curves(c, 'tune').data}<={(m,S.look(m)[0]) for m in METHODS}
    assert S.look('a')[0]==S.look('b')[0] and len({S.look(f'method{i}')[1] for i in range(40)})>4

# --- files -----------------------------------------------------------------------------------------------------------
def test_a_figure_as_a_page_of_its_own(table, tmp_path):
    fig = P.plot_slope(table); html = W.save_figure(fig, tmp_path/'slope.html').read_text(encoding='utf8')
    assert "default-src 'none'" in html and html.count('plotly.js v')==1; one, = W.figures_of(tmp_path/'slope.html').values()
    assert one['caption']==fig.layout.title.text and len(one['data'])==len(fig.data)

def test_pictures_without_a_browser_are_a_clear_error(table, tmp_path, monkeypatch):
    monkeypatch.setenv('PROMPTBENCH_CHROMIUM', str(tmp_path/'no-browser'))
    with pytest.raises(UserError, match='no-browser.*is not there'): W.save_figure(P.plot_slope(table), tmp_path/'a.svg')
    monkeypatch.setenv('PROMPTBENCH_CHROMIUM', '/bin/false')
    with pytest.raises(UserError, match='does not start'): W.save_figure(P.plot_slope(table), tmp_path/'a.png')
    monkeypatch.delenv('PROMPTBENCH_CHROMIUM'); monkeypatch.setattr(W.shutil, 'which', lambda _: None)
    with pytest.raises(UserError, match='none was found'): W.save_figure(P.plot_slope(table), tmp_path/'a.svg')
    with pytest.raises(UserError, match="one of \\['html', 'svg', 'png'\\], got 'jpg'"): W.save_figure(P.plot_slope(table), tmp_path/'a.jpg')
    with pytest.raises(UserError, match='theme must be'): W.save_figure(P.plot_slope(table), tmp_path/'a.html', theme='blue')
    assert list(tmp_path.iterdir())==[]
