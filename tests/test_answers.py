"Answers in words: scores, and judging tasks of both kinds together"
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest, torch
from promptbench.base.core import UserError
from promptbench.data.suite import Dataset, Suite
from promptbench.data.templates import Template
from promptbench.measure.answers import *
from promptbench.measure.evaluate import by_dataset, evaluate
from promptbench.measure.generate import generate
from promptbench.model.backbone import random_backbone
from promptbench.prompt.context import in_context
from promptbench.prompt.inits import new_prompt
from promptbench.stats.results import read_predictions, read_rows, write_predictions, write_rows

torch.set_num_threads(1)
PEOPLE = ['ann','bob','eve']; THINGS = ['cat','dog','mat','hat']

@pytest.mark.parametrize('answer,right,want', [
    ('The Eiffel Tower!', 'eiffel tower', (1,1)), ('in 1889', '1889', (0,2/3)), ('', 'x', (0,0)), ('a', 'the', (1,1)), ('x x y', 'x y y', (0,2/3)), ("it's", 'its', (1,1))])
def test_as_squad_scores(answer, right, want): assert (exact_match(answer, right), token_f1(answer, right))==pytest.approx(want)

def test_rouge_is_the_longest_common_subsequence():
    assert rouge_l('police killed the gunman', 'police kill the gunman')==pytest.approx(.75)      # Lin, 2004
    assert rouge_l('the gunman kill police', 'police killed the gunman')==pytest.approx(.5)

def test_the_best_accepted_answer_counts():
    s = judge_answers(['the cat','dog'], [('a dog','cat'),('mat',)]); assert [s[m].tolist() for m in METRICS]==[[1,0],[1,0],pytest.approx([2/3,0])]
    with pytest.raises(UserError, match='metric'): judge_answers(['a'], [('a',)], ['bleu'])

def test_without_the_package_rouge_is_left_out(monkeypatch):
    import promptbench.measure.answers as a
    monkeypatch.setattr(a, 'find_spec', lambda n: None); assert list(judge_answers(['a'], [('a',)]))==['exact_match','f1']

def test_intervals_hold_the_mean_and_shrink():
    def table(n): return pd.DataFrame(dict(method='none', prompt='none', shots=0, seed=0, dataset='d', template='t', scores_mean=[[i%2,.5,.25] for i in range(n)]))
    few,many = answer_intervals(table(20)),answer_intervals(table(400)); assert few.metric.tolist()==list(METRICS) and few.value.tolist()==[.5,.5,.25]
    assert (few.lo<=few.value+1e-9).all() and (few.hi>=few.value-1e-9).all() and (few.hi-few.lo)[0]>2*(many.hi-many.lo)[0]>0 and (few.hi-few.lo)[1]<1e-9

@pytest.fixture(scope='module')
def suite():
    rows = [dict(who=p, what=t) for p in PEOPLE for t in THINGS]; free = Template('free', 'what has {{who}} ||| {{what}}'); also = Template('also', '{{who}} has ||| {{what}}')
    pick = Template('pick', 'what has {{who}} ||| {{what}}', ' ||| '.join(THINGS))
    return Suite('own', [Dataset('things', 'words', 'train', dict(train=rows, validation=rows), [free,pick,also])])

@pytest.mark.parametrize('kind', ['llama','t5'])
def test_both_kinds_of_task_in_one_call(suite, kind, tmp_path):
    m = random_backbone(['what','has',*PEOPLE,*THINGS], kind=kind, seed=3); tasks = suite.tasks(); bank = new_prompt('deep', m, length=2, n=3)
    rows,lines = evaluate(m, tasks, suite=suite, prompt=bank, max_new=4); assert rows.template.tolist()==['free']*3+['pick']+['also']*3 and len(lines)==36
    for i,t in enumerate(tasks):
        one,alone = evaluate(m, [t], suite=suite, prompt=bank.select([i]), max_new=4); assert one.value.tolist()==pytest.approx(rows[rows.template==t.template].value.tolist())
    es = tasks[2].examples('validation'); texts = generate(m, [e.source for e in es], bank.select([2]), max_new=4, stop=['\n'])
    assert lines[lines.template=='also'].correct.tolist()==[exact_match(w.text, e.target)>0 for w,e in zip(texts, es)]
    write_rows(rows, tmp_path/'rows.parquet'); write_predictions(lines, tmp_path/'predictions.parquet'); assert len(read_rows(tmp_path))==7 and len(read_predictions(tmp_path))==36
    assert by_dataset(rows).metric.tolist()==[*METRICS,'accuracy'] and rows.majority.dropna().tolist()==pytest.approx([.25]*3)

def test_several_answers_may_be_right(suite, monkeypatch):
    m = random_backbone(['what','has',*PEOPLE,*THINGS], kind='llama', seed=3); task = suite.tasks()[0]; es = task.examples('validation')
    monkeypatch.setattr(task, 'examples', lambda *a: [SimpleNamespace(**vars(e)|dict(accepted=(e.target,*THINGS))) for e in es])
    rows,_ = evaluate(m, [task], suite=suite, max_new=1); texts = generate(m, [e.source for e in es], max_new=1); assert rows.value[0]==np.mean([w.text in THINGS for w in texts])

def test_a_source_that_was_cut_is_counted(suite):
    m = random_backbone(['what','has',*PEOPLE,*THINGS], kind='llama'); task = suite.tasks()[0]
    with pytest.raises(UserError, match='most_cut=1'): evaluate(m, [task], suite=suite, max_source=2, max_new=2)
    assert evaluate(m, [task], suite=suite, max_source=2, most_cut=1, max_new=2)[0].cut.tolist()==[1.]*3

def test_shown_examples_and_words(suite):
    m = random_backbone(['what','has',*PEOPLE,*THINGS], kind='llama', seed=1); tasks = suite.tasks(); shown = in_context(m, tasks, 3, calibrated=True)
    rows,_ = evaluate(m, tasks, suite=suite, prompt=shown, max_new=3); assert set(rows.prompt)=={'context'} and set(rows.shots)=={3}
