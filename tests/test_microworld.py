"The embedded world and backbone: what the documentation promises of them"
import hashlib, json, re
from collections import Counter
from itertools import islice
import pytest
from promptbench.base.core import data_dir, rng
from promptbench.world.corpus import SKILLS, VERDICTS
from promptbench.world.facts import world as words_of_world
from promptbench.world.suite import MAKE, build, draw, mark
from promptbench.world.questions import check
from promptbench.data.suite import render

@pytest.fixture(scope='module')
def world(): return build(seed=5, n_eval=150)

def test_its_shape(world):
    roles = Counter(d.role for d in world.datasets); assert roles==dict(train=26, dev=5, eval=9)
    clusters = {r: {d.cluster for d in world.datasets if d.role==r} for r in roles}
    assert len(clusters['train'])==8 and len(clusters['eval'])==4
    assert not clusters['train'] & clusters['eval'] and not clusters['dev'] & (clusters['train']|clusters['eval'])
    assert all(len(d.templates)>=4 for d in world.datasets)

def test_no_template_and_no_generator_serves_two_roles(world):
    seen = {}
    for d in world.datasets:
        for t in d.templates: assert seen.setdefault(t.jinja, d.role)==d.role, t.jinja
    makers = {}
    for d in world.datasets: assert makers.setdefault(MAKE[d.name], d.role)==d.role, d.name

def test_the_same_seed_gives_the_same_bytes():
    text = json.dumps([draw(n, 20, seed=3, split='validation') for n in sorted(MAKE)], sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:16]=='d5fb7e28dc01f9ad', 'the generator gives other records: every committed number is void'

def test_events_and_words_of_two_senses_serve_one_role_each(world):
    "No reason that training or development ask about is asked about in evaluation"
    said = {r: {plain(e['first'][0]) for e in words_of_world()['reasons'] if e['for']==r} for r in ('train','dev','eval')}; assert all(len(v)>2 for v in said.values())
    asks = dict(train=('reason_of','refers','social'), dev=('whom',), eval=('pronoun','who_is'))
    for role,names in asks.items():
        texts = [plain(' '.join(str(v) for v in d.values())) for n in names for d in draw(n, 200, seed=0, split='train', role=role)]
        for other in said:
            hits = sum(any(w in t for w in said[other]) for t in texts); assert (hits>0)==(other==role), (role, other, hits)
    ws = {n: {d['word'] for d in draw(n, 200, seed=0, split='train', role=r)} for n,r in (('uses','dev'),('sense','eval'))}; assert not ws['uses'] & ws['sense'] and len(ws['sense'])==7

def test_the_vocabulary_has_every_word(world):
    "Tasks and corpus are written in words that the backbone has pieces for"
    from promptbench.world.corpus import prose, vocabulary
    known = set(vocabulary()); pieces = lambda s: set(re.findall(r'[a-z]+|[0-9]|[^\sa-z0-9]', s.lower()))
    for t in world.tasks():
        for e in t.examples('validation', 30): assert not (new := pieces(' '.join([e.source, e.target, *(e.choices or ())]))-known), (t.name, new)
    for i in range(1500): assert not (new := pieces(prose(rng('words', i)))-known), new
    for name,(make,levels) in SKILLS.items():
        for level in range(levels):
            for i in range(200): assert not (new := pieces(' '.join(make(rng('words', name, level, i), level)))-known), (name, level, new)

plain = lambda s: re.sub(r'[^a-z0-9]+', ' ', s.lower()).strip()

def test_no_instance_is_shared_between_train_dev_and_eval(world):
    "Neither in one dataset's splits, nor between roles, nor between the shots of one seed and the questions of another"
    other = build(seed=6, n_eval=150); asks = lambda s,name,split: {mark(r) for r in next(d for d in s.datasets if d.name==name).records[split]}
    for d in world.datasets: assert not asks(world, d.name, 'train') & (asks(world, d.name, 'validation')|asks(other, d.name, 'validation')), d.name
    text = {r: {plain(e.source) for t in world.tasks(role=r) for s in ('train','validation') for e in islice(render(t, s), 150)} for r in ('train','dev','eval')}
    assert [len(text[a]&text[b]) for a,b in (('train','eval'),('dev','eval'),('train','dev'))]==[0,0,0]
    said = {role: {(plain(r['passage']), plain(r['claim'])) for r in draw('c', 1500, seed=1, split='train', role=role, make=check)} for role in ('train','dev','eval')}
    assert [len(said[a]&said[b]) for a,b in (('train','eval'),('dev','eval'),('train','dev'))]==[0,0,0]

def test_two_seeds_ask_different_things(world):
    other = build(seed=6, n_eval=150); text = lambda s,name: {json.dumps(r, sort_keys=True) for r in next(d for d in s.datasets if d.name==name).records['validation']}
    for d in world.datasets:
        if d.role!='train': assert len(text(world, d.name) & text(other, d.name))<dict(uses=.25).get(d.name, .15)*150, d.name # the three words of `uses` have few sentences

def test_labels_are_balanced(world):
    for t in world.tasks(role='eval'): assert t.majority<t.chance+.12, (t.name, t.majority)

def test_every_example_has_its_answer_among_the_choices(world):
    for t in world.tasks():
        for e in t.examples('validation', 30):
            if e.choices: assert e.choices[e.gold]==e.target and len(set(e.choices))==len(e.choices), (t.name, e)

def test_the_corpus_never_asks_a_template_question():
    from promptbench.world.corpus import prose
    for i in range(2000):
        t = prose(rng('leak', i))
        for bad in ('yes or no','true or false','Question:','Options:'): assert bad not in t, t

ANSWERS = {'yes','no','maybe','true','false','unknown','agree','disagree'}

def test_answer_words_of_templates_never_carry_a_verdict_in_the_corpus(world):
    "Neither as the word an exercise asks for nor where a document says what is so; and no template answers with a verdict of the corpus"
    from promptbench.world.corpus import prose
    for name,(make,levels) in SKILLS.items():
        for i in range(300): said = make(rng('words', name, i), i%levels)[1].lower().split()[0]; assert said not in ANSWERS, (name, said)
    for i in range(4000):
        t = prose(rng('verdicts', i)); assert not re.search(r'\b(was|is|are|be|:) (yes|no|true|false|maybe|unknown|agree|disagree)\b(?! (longer|to))', t), t
    used = {c for t in world.tasks() if t.ranked for e in t.examples('validation', 6) for c in e.choices}; assert not used & {*VERDICTS,'same','other'} and ANSWERS-{'agree','disagree'}<=used

@pytest.mark.parametrize('seed,name', [(0,'tiny'),(1,'tiny-1'),(2,'tiny-2')])
def test_the_shipped_backbones_are_what_their_cards_say(seed, name):
    import torch
    from promptbench.model.backbone import load_backbone
    from promptbench.prompt.forward import decode, encode
    from promptbench.model.batch import make_batch
    from promptbench.model.tokens import encode_texts
    folder = data_dir('backbones', name); b = load_backbone(name); card = json.loads((folder/'card.json').read_text()); assert b.name==name and card['config']['seed']==seed
    assert sum(f.stat().st_size for f in folder.parent.rglob('*') if f.is_file())<12e6, 'all backbones together'
    assert 1e6<sum(p.numel() for p in b.model.parameters())<4e6 and card['parameters']==sum(p.numel() for p in {id(p):p for p in b.model.parameters()}.values())
    for skill,level,least in (('verify',1,.9),('verify',3,.7),('know',2,.85),('sense',2,.8),('refer',2,.8),('choose',2,.7)):
        ex = [SKILLS[skill][0](rng('check', skill, i), level) for i in range(200)]
        src,tgt = encode_texts(b.tokenizer, [e[0] for e in ex], 768),encode_texts(b.tokenizer, [e[1] for e in ex], 192)
        batch = make_batch(list(zip(src,tgt)))
        with torch.no_grad(): said = decode(b, encode(b, batch), batch.tgt_BU)[:,0].argmax(-1)
        right = (said==batch.tgt_BU[:,0]).float().mean().item(); assert right>least, (skill, level, right)

def test_the_shipped_tokenizer_is_the_one_the_corpus_gives():
    from transformers import AutoTokenizer
    from promptbench.world.corpus import vocabulary
    from promptbench.world.backbone import build_tokenizer
    for name in ('tiny','tiny-1','tiny-2'): assert AutoTokenizer.from_pretrained(data_dir('backbones', name)).get_vocab()==build_tokenizer(vocabulary()).get_vocab()
