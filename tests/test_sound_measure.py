"No silent nonsense in measuring: scores that are no numbers, wrong tokenizers, choices that are alike, sources without their end, limits of nothing"
import json, warnings
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest, torch
from typer.testing import CliRunner
from promptbench.base.core import UserError
from promptbench.cli.suites import app
from promptbench.data.checks import check_suite
from promptbench.data.suite import Dataset, Suite
from promptbench.data.templates import Template, write_templates
from promptbench.measure.evaluate import by_dataset, evaluate
from promptbench.measure.rank import TaskScores, rank
from promptbench.model.backbone import load_backbone, new_backbone, random_backbone, save_backbone, word_tokenizer
from promptbench.model.batch import make_batch, pack
from promptbench.model.tokens import encode_examples
from promptbench.prompt.inits import new_prompt
from promptbench.stats.results import read_rows, write_rows
from promptbench.stats.store import append

WORDS = [f'w{i}' for i in range(60)]+['Film','Good?','yes','no','Answer:']
def example(source='w1 w2', choices=('yes','no'), gold=0, id='e'): return SimpleNamespace(id=id, source=source, target='', choices=tuple(choices), gold=gold)

@pytest.fixture
def toy(): return random_backbone(WORDS, dim=16, layers=(1,1), seed=3)

def films(choices='no ||| yes', n=20, source='{{text}} Good?', words=3, fixed=True):
    rows = [dict(text='Film '+' '.join(f'w{(i+j)%60}' for j in range(words)), label=i%2, a='purple' if i<5 else 'no', b='green' if i<5 else 'yes') for i in range(n)]
    return Suite('films', [Dataset('films', 'sentiment', 'eval', dict(validation=rows), [Template('like', source+' ||| {{ answer_choices[label] }}', choices)])])

def measured(backbone, suite, **how): return evaluate(backbone, suite.tasks(), suite=suite, **how)

# --- numbers that are none -----------------------------------------------------------------------------------------------
def test_a_weight_that_is_not_finite_gives_no_accuracy(toy):
    next(toy.model.parameters()).data.view(-1)[:] = float('nan')
    with pytest.raises(UserError, match=r'40 of 40 of task films/like.*the weights of random are not finite'): measured(toy, films())

@pytest.mark.parametrize('kind', ['shallow','deep'])
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_prompt_that_is_not_finite_gives_no_accuracy(toy, kind, value):
    prompt = new_prompt(kind, toy, length=2, n=2); prompt.table.data[1,0,0] = value
    with pytest.raises(UserError, match=r'2 of 2 of task 1 are not, and 0 more tasks.*the prompt holds numbers that are not finite'): rank(toy, [[example()],[example()]], prompt)

def test_what_grows_too_large_on_the_way_is_told_from_both(toy):
    toy.model.lm_head.weight.data.fill_(3e38)
    with pytest.raises(UserError, match='too large on the way; compute in fp32'): rank(toy, [[example()]])

def test_finite_scores_read_no_weights(toy, monkeypatch):
    monkeypatch.setattr('promptbench.measure.rank._not_finite', lambda *a: pytest.fail('looked for a cause of nothing')); rank(toy, [[example()]])

# --- tokenizers --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('kind', ['t5','qwen','neox','gpt2'])
def test_a_folder_without_tokenizer_files_is_refused(tmp_path, kind):
    save_backbone(random_backbone(WORDS, kind=kind), tmp_path/'m')
    for f in (tmp_path/'m').glob('*token*'): f.unlink()
    with pytest.raises(UserError, match='must bring a tokenizer that knows words'): load_backbone(tmp_path/'m', device='cpu')

def test_a_tokenizer_of_a_larger_model_is_refused(tmp_path):
    save_backbone(random_backbone(WORDS), tmp_path/'m'); word_tokenizer([f'x{i}' for i in range(500)]).save_pretrained(tmp_path/'m')
    with pytest.raises(UserError, match='no row in the embedding table of 78'): load_backbone(tmp_path/'m', device='cpu')

def test_a_tokenizer_that_knows_few_of_the_words_is_told_of():
    foreign = random_backbone(['some','other','words','no','yes'], dim=16)
    with pytest.warns(UserWarning, match=r'\d\d% of what the sources consist of are tokens that the tokenizer of random does not know'): measured(foreign, films())

def test_a_tokenizer_that_fits_is_not_told_of(toy):
    with warnings.catch_warnings(): warnings.simplefilter('error'); measured(toy, films())

# --- choices that are the same -------------------------------------------------------------------------------------------
def test_choices_that_no_example_can_tell_apart_are_refused(toy):
    with pytest.raises(UserError, match=r"every example of task films/like have the same ids, such as \['purple', 'green'\]"): measured(toy, films('purple ||| green'))

def test_choices_that_are_the_same_after_the_cut_are_refused(toy):
    tasks = [[example(choices=('w1 w2 w3 yes','w1 w2 w3 no')) for _ in range(3)]]; rank(toy, tasks)
    with pytest.raises(UserError, match='have the same ids'): rank(toy, tasks, max_target=3)

def test_where_some_cannot_they_are_counted_and_the_winner_is_drawn(toy):
    with pytest.warns(UserWarning, match='5 of 20 examples of task films/like have choices with the same ids'): rows,ps = measured(toy, films('{{a}} ||| {{b}}'))
    tied = [len(set(s))==1 for s in ps.scores_sum]; assert sum(tied)==5

def test_a_tie_is_worth_what_guessing_is():
    n = 4000; level = TaskScores([np.zeros(4)]*n, [np.zeros(4)]*n, np.zeros(n, int))
    assert abs(level.correct().mean()-.25)<.03 and (level.pred()==level.pred()).all(), 'the first of equals would give 1.0'
    sorted_answers = TaskScores(level.sum, level.mean, np.arange(n)%4); assert abs(sorted_answers.correct().mean()-.25)<.03

# --- sources that lost their end ---------------------------------------------------------------------------------------
@pytest.mark.parametrize('kind', ['t5','gpt2'])
def test_sources_that_are_cut_are_counted_exactly(kind):
    b = random_backbone(WORDS, kind=kind); es = [example(' '.join(WORDS[:n])) for n in (4,5,6,7,5)]
    assert rank(b, [es], max_source=5)[0].cut.tolist()==[False,False,True,True,False] and not rank(b, [es])[0].cut.any()
    assert len(b.sources([es[0].source], 5)[0])==len(b.sources([es[0].source], 50)[0])

def test_too_many_are_refused_before_any_work(toy, monkeypatch):
    monkeypatch.setattr('promptbench.measure.rank.score_units', lambda *a: pytest.fail('ranked all the same'))
    with pytest.raises(UserError, match=r'at most 20% .* 20 of 20 of task films/like .* max_source=.* most_cut=1'): measured(toy, films(), max_source=3)

def test_few_are_noted_in_rows_files_and_tables(toy, tmp_path):
    suite = films(); suite.datasets[0].records['validation'][7]['text'] += ' w1'*9
    rows,ps = measured(toy, suite, max_source=8); assert rows.cut.tolist()==[.05] and by_dataset(rows).cut.tolist()==[.05]
    write_rows(rows, tmp_path/'rows.parquet'); assert read_rows(tmp_path/'rows.parquet').cut.tolist()==[.05]
    assert measured(toy, suite, max_source=8, most_cut=.05)[0].cut[0]==.05
    with pytest.raises(UserError, match='at most 4%'): measured(toy, suite, max_source=8, most_cut=.04)

def test_files_from_before_are_read_and_say_the_same(toy, tmp_path):
    rows,ps = measured(toy, films()); old = rows.drop(columns='cut'); write_rows(old, tmp_path/'a'/'rows.parquet')
    assert 'cut' not in read_rows(tmp_path/'a') and by_dataset(old).accuracy.tolist()==by_dataset(rows).accuracy.tolist()
    write_rows(rows.assign(seed=1), tmp_path/'b'/'rows.parquet'); both = read_rows(tmp_path).sort_values('seed'); assert both.cut.isna().tolist()==[True,False]
    write_rows(rows.assign(run='again'), tmp_path/'c'/'rows.parquet'); assert len(read_rows(tmp_path))==2, 'the same result, noted or not'
    append(tmp_path/'store', old, ps); assert append(tmp_path/'store', rows, ps) is None

# --- limits of nothing -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('limit', [0, -1, float('nan'), 2.5, True])
def test_limits_that_keep_nothing(toy, limit):
    for side in ('max_source','max_target'):
        with pytest.raises(UserError, match=f'max_source, max_target. must be a whole number at least 1, got {limit}'): rank(toy, [[example()]], **{side:limit})
    with pytest.raises(UserError, match='a whole number at least 1'): encode_examples(toy.tokenizer, [example()], max_target=limit)

@pytest.mark.parametrize('n', [0, -5, 2.5])
def test_no_examples_are_no_accuracy(toy, n):
    with pytest.raises(UserError, match=f'n, the examples of each task, must be a whole number at least 1, got {n}'): measured(toy, films(), n=n)

def test_sources_that_ask_nothing(toy):
    suite = films(source='{{text}}'); suite.datasets[0].records['validation'][3]['text'] = ' \n'
    assert measured(toy, suite)[0].n.tolist()==[19], 'a template leaves it out'
    own = SimpleNamespace(name='own', jinja='', answer_choices='no ||| yes', apply=lambda r: (' ', 'yes', ('no','yes'), 1))
    with pytest.raises(UserError, match='20 of 20 of task films/own have an empty one'): measured(toy, Suite('films', [Dataset('films', 'sentiment', 'eval', dict(validation=[{}]*20), [own])]))

# --- what a prompt knows of itself -----------------------------------------------------------------------------------------
def test_a_tuned_bank_says_its_shots(toy):
    suite,bank = films(),new_prompt('shallow', toy, length=2); assert measured(toy, suite, prompt=bank)[0].shots.tolist()==[0] and measured(toy, suite, prompt=bank, shots=3)[0].shots.tolist()==[3]
    bank.shots = 3; assert measured(toy, suite, prompt=bank)[0].shots.tolist()==[3] and measured(toy, suite, prompt=SimpleNamespace(bank=bank))[0].shots.tolist()==[3], 'also what holds it'
    assert measured(toy, suite)[0].shots.tolist()==[0] and measured(toy, suite, prompt=bank, shots=3)[0].shots.tolist()==[3]
    with pytest.raises(UserError, match='tuned with, 3, got 0; leave shots out'): measured(toy, suite, prompt=bank, shots=0)

# --- numbers and masks -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('mask', [[True,False], torch.tensor([False,True]), np.array([True,True])])
def test_a_mask_is_not_a_list_of_numbers(mask):
    for make in (make_batch, pack):
        with pytest.raises(UserError, match='no masks'): make([([5,1],[6,1])]*2, mask)
        assert make([([5,1],[6,1])]*2, [1,0]).index_B.tolist()==[1,0]

@pytest.mark.parametrize('label', [[0,1], [True,False], [1], [[0]]])
def test_a_list_is_no_label(label):
    with pytest.raises(UserError, match="answer choices 0 to 1, but field 'label' is"): Template('t', '{{text}} ||| {{ answer_choices[label] }}', 'no ||| yes').apply(dict(text='x', label=label))

# --- before a model is there -----------------------------------------------------------------------------------------------
@pytest.fixture
def folder(tmp_path):
    def make(template, text='Film w1 Good?', n=30):
        p = tmp_path/'s'/'sentiment'/'films'; p.mkdir(parents=True, exist_ok=True); write_templates([template], p/'templates.yaml', 'films')
        for s in ('train','validation'): (p/f'{s}.jsonl').write_text(''.join(json.dumps(dict(text=f'{text} w{i}', label=i%2, b=f'x{i%2}'))+'\n' for i in range(n)))
        return tmp_path/'s'
    return make

@pytest.fixture
def tokenizer(tmp_path): word_tokenizer(WORDS).save_pretrained(tmp_path/'tok'); return str(tmp_path/'tok')

def told(folder, tokenizer, words): return [(p.level, p.count) for p in check_suite(folder, tokenizer=tokenizer) if words in p.what]

@pytest.mark.parametrize('how,text,words,expected', [
    (('{{text}} ||| {{ answer_choices[label] }}', 'purple ||| green'), 'Film Good?', 'the same to the tokenizer in 30 of 30', ('error',30)),
    (('{{text}} ||| {{ answer_choices[0] }}', 'purple ||| {{ ["yes","green"][label] }}'), 'Film Good?', 'the same to the tokenizer in 15 of 30', ('warning',15)),
    (('{{text}} ||| {{ answer_choices[label] }}', 'no ||| yes'), 'nobody knows these words', 'unknown to the tokenizer', ('warning',1)),
    (('{{text}} ||| {{ answer_choices[label] }}', 'no ||| yes'), 'Film '*800, 'more than 768 tokens in 30 of 30', ('warning',30)),
], ids=['choices alike','some choices alike','unknown words','too long'])
def test_a_suite_is_checked_with_a_tokenizer(folder, tokenizer, how, text, words, expected):
    f = folder(Template('like', *how), text); assert told(f, tokenizer, words)==[expected]*2 and not told(f, None, words)
    run = CliRunner().invoke(app, ['suites','check',str(f),'--tokenizer',tokenizer]); assert words in run.stdout and run.exit_code==(expected[0]=='error')

def test_a_sound_suite_with_its_tokenizer(folder, tokenizer):
    f = folder(Template('like', '{{text}} ||| {{ answer_choices[label] }}', 'no ||| yes')); assert {str(p) for p in check_suite(f, tokenizer=tokenizer)}=={str(p) for p in check_suite(f)}

# --- rules -----------------------------------------------------------------------------------------------------------------
def test_sum_and_mean_decide_differently(toy):
    "A short choice and a long one: the sum prefers what has few tokens, the mean what has good ones"
    scores = TaskScores([np.array([-2., -3.])], [np.array([-2., -1.])], np.array([1]))
    assert scores.pred('sum').tolist()==[0] and scores.pred('mean').tolist()==[1] and scores.correct('mean').all() and not scores.correct('sum').any()

def test_the_rule_reaches_rows_and_predictions(toy):
    suite = films('w1 ||| w2 w3 w4 w5'); (_,by_mean),(_,by_sum) = (measured(toy, suite, rule=r) for r in ('mean','sum'))
    assert by_mean.pred.tolist()==[int(np.argmax(s)) for s in by_mean.scores_mean] and by_sum.pred.tolist()==[int(np.argmax(s)) for s in by_mean.scores_sum]
    assert set(by_sum.pred)=={0} and set(by_mean.pred)=={1}, 'an untrained model finds all tokens about alike'

@pytest.mark.parametrize('end', ['', ' ', '\n', ' \n', '\t'])
def test_white_space_at_the_end_of_a_source_says_nothing(toy, end):
    assert toy.sources(['w1 Answer:'+end])==toy.sources(['w1 Answer:'])
    assert rank(toy, [[example('w1 Answer:'+end)]])[0].sum[0].tolist()==rank(toy, [[example('w1 Answer:')]])[0].sum[0].tolist()

def test_a_byte_level_tokenizer_keeps_the_line_end_with_the_source():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()); t = Tokenizer(models.BPE({c:i for i,c in enumerate([*alphabet,'</s>'])}, []))
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False); t.decoder = decoders.ByteLevel()
    b = new_backbone(PreTrainedTokenizerFast(tokenizer_object=t, eos_token='</s>'), kind='gpt2', dim=16, layers=(1,1)); read = lambda text: b.tokenizer.decode(b.sources([text])[0])
    assert [read('Answer:'+end) for end in ('', ' ', '\n', '\n  ')]==['Answer:', 'Answer:', 'Answer:\n', 'Answer:\n'] and b.tokenizer.decode(b.targets(['yes'])[0])==' yes'
