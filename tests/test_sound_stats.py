"No silent nonsense in statistics: percentages for shares, tables whose columns shift, intervals of nothing"
import numpy as np, pandas as pd, pytest
from typer.testing import CliRunner
from promptbench.base.core import UserError
from promptbench.cli.results import app
from promptbench.stats.bootstrap import bootstrap_arg, estimate
from promptbench.stats.claims import judge
from promptbench.stats.intervals import holm, interval, p_value
from promptbench.stats.metrics import accuracy, arg, arg_table, contributions, relative_gain
from promptbench.stats.resample import replicate
from promptbench.stats.results import check_rows, write_predictions, write_rows
from promptbench.stats.scores import arg_scores, read_scores
from promptbench.stats.store import append
from synth import predictions, rows as rows_of

def make(): return predictions(seeds=(0,), n=20)

HEAD = 'dataset,template,chance,value'
GOOD = f'{HEAD}\nrte,a,.5,.85\ncopa,b,.5,.85\n'

@pytest.fixture
def csv(tmp_path):
    def make(text, name='scores.csv'):
        p = tmp_path/name; p.write_bytes(text if isinstance(text, bytes) else text.encode()); return p
    return make

def gain(path, columns=None): return arg_scores(read_scores(path, columns), by='macro9', baseline='chance')['arg'].tolist()

# --- tables that shift ---------------------------------------------------------------------------------------------------
def test_a_sound_table(csv): assert gain(csv(GOOD))==pytest.approx([70])

@pytest.mark.parametrize('text', [b'\xef\xbb\xbf'+GOOD.encode(), GOOD.replace('\n','\r\n'), GOOD+'\n\n', GOOD.replace('rte','"r, te"'), ',' + GOOD.replace('\n', '\n0,')[:-2]], ids=['byte order mark','Windows line ends','blank lines','a comma in quotation marks','an index without a name'])
def test_what_changes_nothing(csv, text): assert gain(csv(text))==pytest.approx([70])

BAD = {
    'trailing commas': (GOOD.replace('.85\n', '.85,\n'), r'its header, 4, but line 2 has 5; look for commas'),
    'one trailing comma, late': (GOOD+'cb,c,.5,.85,\n', r'line 4 has 5'),
    'a field too few': (GOOD+'cb,c,.5\n', r'line 4 has 3'),
    'a comma in a name': (GOOD.replace('rte,', 'r, te,'), r'line 2 has 5'),
    'decimal commas': (GOOD.replace('.85', '0,85'), r'line 2 has 5'),
    'semicolons': (GOOD.replace(',', ';'), r'must have commas between its columns'),
    'a column twice': (GOOD.replace('chance,', 'value,'), r"\['value'\] come twice"),
    'nothing': ('', r'must be a CSV table'),
    'header only': (HEAD+'\n', r'holds no scores'),
    'Latin-1': (GOOD.encode().replace(b'rte', b'caf\xe9'), r'must be UTF-8'),
    'UTF-16': (GOOD.encode('utf-16'), r'must be UTF-8'),
    'percentages': (GOOD.replace('.85', '72.5'), r"every score must lie between 0 and 1, but 2 of 2 do not, first 72.5 of {'dataset': 'rte'.*divide percentages by 100"),
    'a percentage among shares': (GOOD.replace('copa,b,.5,.85', 'copa,b,.5,72.5'), r'1 of 2 do not'),
    'percentages as chance': (GOOD.replace('.5,', '50,'), r'every baseline must lie between 0 and 1'),
    'a score below 0': (GOOD.replace('.85', '-.1'), r'lie between 0 and 1'),
    'infinity': (GOOD.replace('.85', 'inf'), r'lie between 0 and 1'),
    'percent signs': (GOOD.replace('.85', '72.5%'), r"numbers in its column value, but 2 of 2 are not, first '72.5%' in row 1; write 72.5 % as .725"),
    'a word among scores': (GOOD.replace('copa,b,.5,.85', 'copa,b,.5,high'), r"first 'high' in row 2"),
    'a word as chance': (GOOD.replace('copa,b,.5', 'copa,b,half'), r"numbers in its column chance"),
    'true and false': (GOOD.replace('.85', 'True'), r'numbers in its column value'),
    'a gap': (GOOD.replace('copa,b,.5,.85', 'copa,b,.5,'), r'must have a value, but 1 of 2 have none'),
    'the same cell twice': (GOOD+'rte,a,.5,.6\n', r'one entry per key'),
    'a seed that is missing': ('seed,'+GOOD.replace('\nrte','\n0,rte').replace('\ncopa','\n,copa'), r'must have a seed, but 1 of 2 have none'),
    'a seed without one of the templates': ('seed,'+GOOD.replace('\nrte','\n0,rte').replace('\ncopa','\n0,copa')+'1,rte,a,.5,.9\n', r'lacks \[\(.copa., .b.\)\]'),
}
@pytest.mark.parametrize('name', BAD)
def test_a_table_that_would_give_a_wrong_number(csv, name):
    text,words = BAD[name]
    with pytest.raises(UserError, match=words): gain(csv(text))

def test_the_command_says_so(csv):
    run = CliRunner().invoke(app, ['arg', str(csv(BAD['trailing commas'][0]))]); assert isinstance(run.exception, UserError) and not run.stdout

def test_parquet_is_judged_alike(tmp_path):
    for value,words in ((72.5,'lie between 0 and 1'), (True,'must have numbers'), ('.8 ?','must have numbers')):
        pd.DataFrame(dict(dataset=['rte'], template=['a'], chance=[.5], value=[value])).to_parquet(tmp_path/'x.parquet')
        with pytest.raises(UserError, match=words): gain(tmp_path/'x.parquet')

# --- percentages anywhere ----------------------------------------------------------------------------------------------
def rows(**change): return pd.DataFrame([dict(suite='s', backbone='b', method='m', prompt='none', shots=0, seed=0, cluster='c', dataset=d, template='t', metric='accuracy', value=.725, n=10, chance=.5, majority=.5, run='r')|change for d in ('rte','copa')])

@pytest.mark.parametrize('change', [dict(value=72.5), dict(value=-.1), dict(value=float('inf')), dict(chance=50.), dict(majority=55.), dict(cut=20.)])
def test_stores_and_files_refuse_what_is_no_share(tmp_path, change):
    for write in (lambda: append(tmp_path/'s', rows(**change)), lambda: write_rows(rows(**change), tmp_path/'rows.parquet'), lambda: check_rows(rows(**change))):
        with pytest.raises(UserError, match='between 0 and 1'): write()
    assert not (tmp_path/'s').exists() and not (tmp_path/'rows.parquet').exists()

@pytest.mark.parametrize('count', [arg, arg_table, contributions, lambda d, baseline: relative_gain(d, baseline)])
def test_every_statistic_refuses_percentages(count):
    count(rows(), baseline='chance')
    for d,baseline in ((rows(value=72.5),'chance'), (rows(chance=50.),'chance'), (rows(majority=50.),'majority'), (rows(),rows(value=50.)), (rows(value=72.5),rows(value=50.))):
        with pytest.raises(UserError, match='divide percentages by 100'): count(d, baseline=baseline)

def test_other_metrics_over_a_measured_baseline_have_their_own_scale():
    a,b = rows(metric='perplexity', value=30.),rows(metric='perplexity', value=20.); assert arg(a, baseline=b)==pytest.approx(50)
    with pytest.raises(UserError, match='be finite'): arg(rows(metric='perplexity', value=float('inf')), baseline=b)

def test_answers_are_right_or_wrong():
    ps = make(); accuracy(ps)
    with pytest.raises(UserError, match='true or false'): accuracy(ps.assign(correct=72.5))

# --- intervals of nothing -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize('bad', [[1., float('nan')], [float('inf'), 0.], [1., None]])
@pytest.mark.parametrize('column', ['scores_sum','scores_mean'])
def test_scores_that_are_no_numbers_are_not_kept(tmp_path, bad, column):
    p = predictions(seeds=(0,), n=3); p[column] = [[0., 1.], bad, *[[0., 1.]]*(len(p)-2)]
    with pytest.raises(UserError, match=f'{column} must be finite numbers, but those of instance'): write_predictions(p, tmp_path/'p.parquet')
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('level', [95, 1, 0, -.5, float('nan')])
def test_levels_that_are_none(level):
    with pytest.raises(UserError, match='95 % is .95'): interval(np.arange(10.), 4., level=level)

@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_draws_that_are_no_numbers(bad):
    draws = np.arange(10.); draws[3] = bad
    for count in (interval, p_value):
        for args in ((draws, 4.), (np.arange(10.), bad)):
            with pytest.raises(UserError, match='must be finite'): count(*args)
        with pytest.raises(UserError, match='at least one resample'): count(np.zeros(0), 0.)

def test_p_values_are_shares():
    with pytest.raises(UserError, match='p-values must lie between 0 and 1, got 5'): holm([.1, 5])

@pytest.mark.parametrize('n', [0, -1, 2.5])
def test_no_resamples_are_no_interval(n):
    with pytest.raises(UserError, match='n, the resamples, must be a whole number at least 1'): replicate(make(), n=n)

# --- many claims at once --------------------------------------------------------------------------------------------------
def test_claims_are_judged_with_enough_resamples_and_both_verdicts_are_told():
    from promptbench.show.assemble import assemble
    from promptbench.show.findings import headline
    ps = predictions(seeds=(0,), n=40); made = assemble(rows_of(ps), ps, n=200); c = made.claims[made.claims.verdict!='not run']
    assert made.told['claim_samples']==10_000 and c.p.min()<=2/5001 and len(c)*2/201>.05, 'the least p of 200 resamples would survive nothing'
    assert set(c.verdict_holm)>={'holds'} and ((c.verdict_holm==c.verdict)|(c.verdict_holm=='undecided')).all() and (c.verdict_holm!=c.verdict).any()
    said = headline(made.claims)[1][-1]; assert f'{(c.verdict=="holds").sum()} hold' in said and f'(Holm), {(c.verdict_holm=="holds").sum()} hold' in said
    strict = judge(rows_of(ps), ps, n=10_000, family=True); assert (strict.verdict==strict.verdict_holm).all()

def test_a_report_says_that_sources_were_cut(tmp_path):
    from promptbench.show.assemble import assemble, write_study
    ps = predictions(seeds=(0,), n=10); rs = rows_of(ps); words = 'lost their end'
    def page(rs): return write_study(tmp_path, assemble(rs, ps, n=50, n_claims=50), settings=dict(suite='microworld', backbone='tiny')).read_text()
    assert words not in page(rs) and words not in page(rs.assign(cut=0.)) and f'2.5% of entail as {rs.template[0]}' in page(rs.assign(cut=[.025]+[0.]*(len(rs)-1)))
