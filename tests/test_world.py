"Every answer of the world follows from its text, and from nothing less"
import math, re
from collections import Counter, defaultdict
from pathlib import Path
import pytest
import solver
from promptbench.base.core import UserError, rng

from promptbench.world.suite import MAKE, about, build, draw, everyone, family
from promptbench.data.suite import load_suite, render

TURNED = {'report/lying','uses/odd','return_visit/money'} # templates that ask whether something is wrong

@pytest.fixture(scope='module')
def world(): return build(seed=11, n_eval=40, n_train=40)

@pytest.mark.parametrize('role', ['train','dev','eval'])
def test_the_solver_answers_every_task(world, role):
    "From the words of the record and the data file alone"
    for t in world.tasks(role=role):
        records = t.data.records['validation']; examples = list(render(t, 'validation', range(14))); assert len(examples)==14, t.name
        for e in examples: assert solver.solve(t.dataset, records[int(e.id.rsplit('/',1)[1])], e.choices, t.name in TURNED)==e.target, (t.name, e)

def test_the_solver_can_be_wrong():
    d = draw('entail', 1, seed=0, split='validation', role='eval')[0]; assert solver.solve('entail', d, ('no','yes'), False)!=solver.solve('entail', d, ('no','yes'), True)
    with pytest.raises(AssertionError): solver.solve('entail', {**d, 'premise':'Tom sings.'}, ('no','yes'), False)

# --- the family --------------------------------------------------------------------------------------------------------
norm = lambda s: re.sub(r'[^a-z0-9{}\[\]]+', ' ', s.lower()).strip()

@pytest.fixture(scope='module')
def many(): return load_suite('microworld', seed=11, family=1000, n_train=3)

def test_a_thousand_tasks_with_names_of_their_own(many):
    tasks = many.tasks(role='train'); assert len(tasks)==1000==len({t.dataset for t in tasks}) and all(len(about(t))>15 for t in tasks)
    assert len({(t.cluster, re.match(r'[a-z]+-[a-z]+(-[a-z]+)?', t.dataset)[0], norm(t.wording.jinja)) for t in tasks})==1000
    assert len({norm(m.about)+norm(m.jinja) for m in everyone()})==len(everyone())

def test_no_two_tasks_read_the_same(many):
    "What is rendered, in small letters and without marks, comes once"
    seen = Counter(); first = {}
    for t in many.tasks(role='train'):
        for e in render(t, 'train', [0]): seen[norm(e.source)] += 1; first.setdefault(norm(e.source), t.name)
    assert len(seen)==1000 and max(seen.values())==1

def test_no_text_is_shared_with_the_default_suite(many, world):
    assert not {norm(t.wording.jinja) for t in many.tasks(role='train')} & {norm(t.wording.jinja) for t in world.tasks()}

def test_the_solver_answers_the_family(many):
    for t in many.tasks(role='train'):
        d = t.data.records['train'][0]; e = next(render(t, 'train', [0]))
        assert solver.solve(t.cluster[7:], d, e.choices, '-wrong-' in t.name or '-guess_wrong-' in t.name)==e.target, (t.name, e)

def test_smaller_families_are_prefixes():
    assert [m.name for m in family(30)]==[m.name for m in family(1000)][:30]
    assert set(Counter(m.cluster for m in family(90)).values())=={10}
    with pytest.raises(UserError, match='ask for fewer'): family(10**6)

def test_twenty_tasks_look_as_they_did(many):
    "A snapshot that a person has read; rewrite it with `python tests/test_world.py` and read it again"
    assert snapshot(many)==(Path(__file__).parent/'golden'/'family20.txt').read_text(encoding='utf8')

def snapshot(suite)->str:
    out = []
    for t in rng('snapshot').sample(suite.tasks(role='train'), 20):
        e = next(render(t, 'train', [0])); out.append(f"{t.dataset}: {about(t)}\n  {e.source}\n  -> {e.target}   of {', '.join(e.choices or ['free text'])}\n")
    return '\n'.join(out)

# --- artefacts: what a reader of half the example could score ------------------------------------------------------------
words = lambda s: Counter(re.findall(r'[a-z0-9]+', s.lower())).keys() | set(zip((w:=re.findall(r'[a-z0-9]+', s.lower())), w[1:]))

def bayes(train, test):
    "Accuracy of naive Bayes over words and pairs of words, on (text, label) pairs"
    count,total = defaultdict(Counter),Counter(l for _,l in train)
    for s,l in train: count[l].update(words(s))
    def score(s, l): return math.log(total[l])+sum(math.log((count[l][w]+.5)/(total[l]+1)) for w in words(s))
    return sum(max(total, key=lambda l: score(s,l))==l for s,l in test)/len(test)

def chooser(train, test):
    "Accuracy of picking the choice whose words were most often right, on (choices, answer) pairs"
    right,shown = Counter(),Counter()
    for cs,a in train:
        for c in cs: shown.update(words(c)); right.update(words(c) if c==a else ())
    score = lambda c: sum(math.log((right[w]+1)/(shown[w]-right[w]+len(train[0][0])-1)) for w in words(c))/len(words(c))
    return sum(max(cs, key=score)==a for cs,a in test)/len(test)

HALF = dict(entail='hypothesis', commit='hypothesis', infer='hypothesis', report='statement', yes_no='question', yes_no_maybe='question', agree='question', guess='guess', about='topic', title_check='title', turned='s2', reworded='s2',
            same_question='s2', uses='s2', pronoun='name', holder='name', whom='name', sense='s2', social='guess', cause='guess', ending='guess', close='guess', before='guess', pick='guess', feelings='guess', odd='guess')
N,TEST,NEAR = 1500,1500,.05

@pytest.mark.parametrize('name', HALF)
def test_the_claim_alone_does_not_tell_the_verdict(name):
    rs = [MAKE[name](rng('artefact', name, i)) for i in range(N+TEST)]; rs = [(r[HALF[name]], r['label']) for r in rs]
    chance = max(Counter(l for _,l in rs).values())/len(rs); assert abs(bayes(rs[:N], rs[N:])-1/len({l for _,l in rs}))<NEAR, (bayes(rs[:N], rs[N:]), chance)

@pytest.mark.parametrize('name', [n for n in MAKE if 'choices' in MAKE[n](rng('probe'))])
def test_the_choices_alone_do_not_tell_the_answer(name):
    rs = [MAKE[name](rng('choices', name, i)) for i in range(N+TEST)]; rs = [(r['choices'], r['answer']) for r in rs]
    if len({tuple(sorted(c)) for c,_ in rs})==1: pytest.skip('always the same choices')
    assert abs(chooser(rs[:N], rs[N:])-1/len(rs[0][0]))<NEAR, chooser(rs[:N], rs[N:])

def test_an_artefact_is_found():
    "Endings drawn from any place of their story give themselves away"
    from promptbench.world.facts import story, world as words_of_world
    def leaky(i):
        r = rng('leak', i); s = story(r); a = s['steps'][3]; cs = [a, r.choice(words_of_world()['scripts'][(s['i']+1)%24][0][:3])]; r.shuffle(cs); return cs,a
    rs = [leaky(i) for i in range(N+TEST)]; assert chooser(rs[:N], rs[N:])>.7

def test_the_family_has_no_artefact_either():
    "The same two readers on a sample of the family's generators"
    makers = {}
    for m in everyone(): makers.setdefault(re.match(r'[a-z]+-[a-z]+(-(pl|[pqcofej])(?=-))?', m.name)[0], m)
    for name,m in rng('sample').sample(sorted(makers.items()), 12):
        rs = [m.make(rng('artefact', name, i)) for i in range(2400)]
        if 'choices' in rs[0] and not name.startswith('count'): got = chooser([(r['choices'], r['answer']) for r in rs[:1200]], [(r['choices'], r['answer']) for r in rs[1200:]]); assert abs(got-1/3)<NEAR+.01, (name, got)
        if 'choices' not in rs[0]:
            half = [(r.get('claim') or r.get('s2') or r['question'], r['label']) for r in rs]; got = bayes(half[:1200], half[1200:]); assert abs(got-1/len({l for _,l in half}))<NEAR+.01, (name, got)

if __name__=='__main__':
    (Path(__file__).parent/'golden'/'family20.txt').write_text(snapshot(load_suite('microworld', seed=11, family=1000, n_train=3)), encoding='utf8')
