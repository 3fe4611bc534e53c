"The linter, the check of a whole suite, its commands, and the figures of a suite"
import json
import pandas as pd, pytest
from typer.testing import CliRunner
from promptbench.data.checks import Problem, check_suite, lengths, lint, lint_file, token_counter, truncation
from promptbench.cli.suites import app, found_suites
from promptbench.base.core import UserError
from promptbench.data.suite import describe, load_suite
from promptbench.show.suite_plots import plot_baselines, plot_lengths, plot_sizes, plot_truncation
from promptbench.data.templates import Template, write_templates

LIKE = Template('like', '{{text}} Good? ||| {{ answer_choices[label] }}', 'no ||| yes')
def rows(n=30, **more): return [(i+1, dict(text=f'Film {i}.', label=i%2, **more)) for i in range(n)]
def found(template, records=None, words=''): return [(p.level, p.row, p.count) for p in lint(template, records or rows(), 'f.jsonl') if words in p.what]

@pytest.fixture
def films(tmp_path):
    f = tmp_path/'s'/'sentiment'/'films'; f.mkdir(parents=True); write_templates([LIKE], f/'templates.yaml', 'films')
    for s in ('train','validation'): (f/f'{s}.jsonl').write_text(''.join(json.dumps(dict(text=f'{s} {i}', label=i%2))+'\n' for i in range(40)))
    return tmp_path/'s'

def errors(folder, level='error', **options): return [p for p in check_suite(folder, **options) if p.level==level]

# --- one template ----------------------------------------------------------------------------------------------------
def test_a_sound_template_passes(): assert lint(LIKE, rows(), 'f.jsonl')==[]

def test_target_outside_the_choices():
    t = Template('t', '{{text}} ||| {{ "ABC"[i%3] }}', 'A ||| B')
    assert found(t, [(n, dict(r, i=n-1)) for n,r in rows()], 'not among its choices')==[('warning', 3, 10)]

def test_empty_source():
    t = Template('t', '{{ text if label else "" }} ||| yes', 'no ||| yes')
    assert found(t, words='empty source')==[('error', 1, 15)]

def test_skipped_rows_are_counted():
    t = Template('t', '{% if label %}{{text}} ||| {{ ["no","yes"][loop_ % 2] }}{% endif %}', 'no ||| yes')
    assert found(t, [(n, dict(r, loop_=n//2)) for n,r in rows()], 'skips 15 of 30')==[('note', 1, 15)]

def test_choices_that_repeat_in_an_example():
    t = Template('t', '{{text}} ||| {{answer_choices[label]}}', '{{a}} ||| {{b}}')
    assert found(t, [(n, dict(r, a='x', b='x' if n in (4,9) else 'y')) for n,r in rows()], 'same choice twice')==[('warning', 4, 2)]

def test_an_empty_choice():
    t = Template('t', '{{text}} ||| {{answer_choices[0]}}', 'a ||| {{b}}')
    assert found(t, rows(b=''), 'empty choice')==[('warning', 1, 30)]

@pytest.mark.parametrize('source,leaks', [('{{text}} It is {{answer_choices[label]}}.', True), ('{{text}} Yes or no?', False), ('{{text}}', False), ('{{text}} {{answer_choices|join(", ")}}?', False),
                                          ('{{text}} Now, {{answer_choices[label]}}thing', False)])
def test_a_leak_is_a_target_without_the_other_choices(source, leaks):
    assert bool(found(Template('t', source+' ||| {{answer_choices[label]}}', 'no ||| yes'), words='holds the target'))==leaks

def test_what_the_metadata_say_about_choices():
    says = lambda v, source: found(Template('t', source+' ||| {{answer_choices[label]}}', 'no ||| yes', dict(choices_in_prompt=v)), words='choices_in_prompt')
    assert says(True, '{{text}}') and says(False, '{{text}} yes or no?') and not says(True, '{{text}} yes or no?') and not says(False, '{{text}}')

def test_a_target_at_one_place():
    assert found(LIKE, [(n, dict(r, label=1)) for n,r in rows()], 'choice 2 in all of 30')==[('warning', None, 1)]

def test_a_template_that_fails_everywhere_is_soon_given_up():
    slow = Template('t', '{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %} ||| x')
    assert len(lint(slow, rows(2000), 'f'))==20

def test_copies_among_templates():
    told = lint_file([LIKE, Template('b', '  '+LIKE.jinja.replace(' ', '  '), LIKE.answer_choices), Template('c', LIKE.jinja, 'yes ||| no')], 'f')
    assert len(told)==1 and "'b' is the same as 'like'" in told[0].what

# --- a whole suite ---------------------------------------------------------------------------------------------------
def test_a_mistake_in_a_row_is_told_once_for_all_templates(films):
    f = films/'sentiment'/'films'; write_templates([LIKE, Template('two', '{{text}} ||| {{answer_choices[label]}}', 'bad ||| good')], f/'templates.yaml', 'films')
    p = f/'train.jsonl'; p.write_text(p.read_text()+'\n{"text": "a", "label": -1}\n{"text": "b", "label": -1}\n')
    e, = errors(films); assert (e.row, e.field, e.count)==(42, 'label', 2) and '2 templates' in e.what and e.file==str(p)

def test_copies_and_shared_rows(films):
    f = films/'sentiment'/'films'; first = (f/'train.jsonl').read_text().splitlines(True)[0]
    (f/'train.jsonl').write_text((f/'train.jsonl').read_text()+first); (f/'validation.jsonl').write_text((f/'validation.jsonl').read_text()+first)
    a,b = errors(films, 'warning'); assert (a.row, a.count)==(41, 1) and 'copies' in a.what and (b.row, b.count)==(41, 1) and 'another split' in b.what

def test_null_fields(films):
    p = films/'sentiment'/'films'/'train.jsonl'; p.write_text(p.read_text()+'{"text": null, "label": 1}\n')
    w, = errors(films, 'warning'); assert (w.row, w.field)==(41, 'text')

def test_take_reads_a_spread_of_rows(films):
    p = films/'sentiment'/'films'/'train.jsonl'; p.write_text(p.read_text()+'{"text": "a", "label": -1}\n')
    assert errors(films) and not errors(films, take=5)

def test_a_line_per_problem(): assert str(Problem('error', 'f', 'w', 't', 3, 'label'))=="error: f, row 3, field 'label': w; t"

def test_a_path_that_is_none():
    with pytest.raises(UserError, match='folder of a suite'): list(check_suite('/no/such'))

# --- commands --------------------------------------------------------------------------------------------------------
def run(*args): return CliRunner().invoke(app, list(map(str, args)))

def test_check_says_all_is_well(films):
    r = run('suites','check',films); assert r.exit_code==0 and '0 errors, 0 warnings' in r.output and len(r.output.splitlines())==1
    assert 'has no suite.yaml' in run('suites','check',films,'--notes').output

def test_check_ends_with_one_where_there_are_errors(films):
    (films/'sentiment'/'films'/'train.jsonl').write_text('{"text": "a"}\n'); r = run('suites','check',films)
    assert r.exit_code==1 and "train.jsonl, row 1, field 'label'" in r.output.replace('\n','') and '1 error,' in r.output

def test_suites_lists_names_and_folders(films):
    r = run('suites','--in',films.parent); assert r.exit_code==0 and 'microworld' in r.output and str(films) in r.output
    assert found_suites(films)==[films] and found_suites(films/'sentiment'/'films')==[]
    assert isinstance(run('suites','--in','/no/such').exception, UserError)

def test_show_a_task(films):
    out = run('show',films,'films/like').output
    assert all(w in out for w in ('40 rows, 40 used, 0 skipped', 'guessing 50.0%', 'commonest answer 50.0%', 'cut at 768', 'validation 0 Good?', '* no'))
    assert 'films' in run('show',films).output

# --- lengths and figures ---------------------------------------------------------------------------------------------
def test_lengths_count_what_the_backbone_sees(films):
    from promptbench.model.backbone import load_backbone
    suite,count = load_suite(films),token_counter('tiny'); t = suite.task('films/like'); b = load_backbone('tiny'); es = t.examples('validation')
    assert count([e.source for e in es])==[len(x) for x in b.tokenizer([e.source for e in es], add_special_tokens=False)['input_ids']]
    table = lengths(suite, count, n=7); assert len(table)==7 and (table.target==max(count(['no','yes']))).all()
    cut = truncation(table, max_source=int(table.source.min())-1); assert list(cut.cut)==[1.] and truncation(table).cut[0]==0

def test_figures_show_every_row(films):
    suite = load_suite(films); table,long = pd.DataFrame(describe(suite)),lengths(suite, token_counter('tiny'), n=5)
    assert plot_sizes(table).data[0].x==(40,) and plot_baselines(table).data[1].x==(.5,)
    assert sum(sum(r) for r in plot_lengths(long).data[0].z)==pytest.approx(1) and 'No source' in plot_truncation(truncation(long)).layout.title.text
    for f in (plot_sizes, plot_lengths, plot_truncation, plot_baselines):
        with pytest.raises(UserError): f(table.iloc[:0] if f in (plot_sizes, plot_baselines) else long.iloc[:0])

def test_the_real_suite_has_no_errors(shared):
    told = list(check_suite(shared/'real', take=40))
    assert not [str(p) for p in told if p.level=='error']
    assert any('sciq' in p.file and 'choice 4 in all' in p.what for p in told)   # a flaw of the data that the linter must find
