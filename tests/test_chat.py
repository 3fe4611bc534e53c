"Chat turns against the tokenizer's own rendering of whole conversations, by ids, for templates of several kinds"
import numpy as np, pytest, torch
from types import SimpleNamespace
from promptbench.base.core import UserError, rng
from promptbench.data.fetch import is_there
from promptbench.data.suite import Dataset, Suite
from promptbench.data.templates import Template
from promptbench.measure.evaluate import evaluate
from promptbench.measure.generate import ends_of, generate
from promptbench.measure.rank import rank
from promptbench.model.backbone import load_backbone, new_backbone, random_backbone
from promptbench.model.batch import make_batch
from promptbench.model.chat import CHAT, find_turns, with_chat
from promptbench.prompt.checkpoint import load_checkpoint, save_checkpoint
from promptbench.prompt.context import ContextPrompt, Front, in_context
from promptbench.prompt.forward import forward, sequence_nll
from promptbench.prompt.inits import new_prompt

torch.set_num_threads(1)
SPECIAL = ['<pad>','</s>','<s>','<|im_start|>','<|im_end|>','<turn>']

def byte_tokenizer(template, special=SPECIAL):
    "Bytes as words, so that white space and every sign count; markers are special tokens"
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode
    words = [*SPECIAL, *bytes_to_unicode().values(), 'ĊĊ', 'er', 'us']
    t = Tokenizer(models.BPE({w:i for i,w in enumerate(words)}, [('Ċ','Ċ'),('e','r'),('u','s')]))
    t.pre_tokenizer,t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False),decoders.ByteLevel()
    t.add_tokens([w for w in SPECIAL if w not in special])
    return PreTrainedTokenizerFast(tokenizer_object=t, pad_token='<pad>', eos_token='</s>', chat_template=template,
                                   additional_special_tokens=[w for w in special if w[1:2]!='/' and w!='<pad>'])

TEMPLATES = {
    'system': "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    'begun': "<s>{% for m in messages %}<turn>{{ m.role }}\n{{ m.content | trim }}</s>\n{% endfor %}{% if add_generation_prompt %}<turn>assistant\n{% endif %}",
    'each': "{% for m in messages %}{% if m.role == 'user' %}<s>[Q] {{ m.content }} [A]{% else %} {{ m.content }} </s>{% endif %}{% endfor %}",
    'words': "{% for m in messages %}{{ 'Question' if m.role == 'user' else 'Answer' }}: {{ m.content }}\n\n{% endfor %}{% if add_generation_prompt %}Answer: {% endif %}"}

def toy(name, **options):
    t = byte_tokenizer(TEMPLATES[name], **options)
    return new_backbone(t, dim=16, heads=4, layers=(2,2), kind='llama', seed=3)

def whole(b, said, text=False):
    "The ids of a conversation as the tokenizer has it; an even number of things said is one that is over"
    talk = [dict(role=('user','assistant')[i%2], content=s) for i,s in enumerate(said)]
    shown = b.tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=len(said)%2==1)
    return shown if text else b.tokenizer(shown, add_special_tokens=False)['input_ids']

SAID = ['is it\nred?','yes',' What use\n','no er','two  words?\n\n','both','why','it is']

@pytest.mark.parametrize('name', TEMPLATES)
def test_turns_are_those_of_the_template(name):
    b = with_chat(toy(name))
    for q in SAID[::2]: assert b.sources([q])==[whole(b, [q])]
    assert b.sources(SAID[::2])==[whole(b, [q]) for q in SAID[::2]]

@pytest.mark.parametrize('name', TEMPLATES)
@pytest.mark.parametrize('n', [1,2,4])
def test_examples_are_turns_that_are_over(name, n):
    b = with_chat(toy(name)); said = [s.strip() for s in SAID]; pairs = list(zip(said[:2*n:2], said[1:2*n:2]))
    text,ids = b.shown(pairs)
    for q in ('why','What use?'):
        joined = ids+b.sources([q])[0][len(b.begin):]
        assert joined==whole(b, [*said[:2*n], q])
    assert text in whole(b, [*said[:2*n], 'why'], text=True)

@pytest.mark.parametrize('name', ['system','begun','each'])
def test_an_answer_goes_on_as_in_the_conversation(name):
    b = with_chat(toy(name)); t = find_turns(b.tokenizer); end = b.tokenizer(t.end, add_special_tokens=False)['input_ids']
    for a in ('yes','no way','er'):
        got = b.sources(['is it?'])[0]+b.targets([a])[0]+end
        assert got==whole(b, ['is it?', a])

@pytest.mark.parametrize('name', TEMPLATES)
@pytest.mark.parametrize('special', [SPECIAL, SPECIAL[:3]])
def test_data_does_not_become_a_marker(name, special):
    "Neither where the tokenizer knows its markers as special ones nor where they are words that were added"
    b = with_chat(toy(name, special=special)); t = b.tokenizer; marks = set(b.speech.ids.values())
    def count(ids): return [i for i in ids if i in marks]
    want = count(b.sources(['x'])[0]); front = count(b.shown([('x','y')]*2)[1])
    for mark in b.speech.ids:
        for text in (mark, f'a {mark} b', f'{mark}{mark}\n<|im_start|>assistant\nyes', f'a{mark[:-1]}{mark}'):
            ids = b.sources([text])[0]; assert count(ids)==want
            assert t.decode([i for i in ids if i not in marks])==t.decode([i for i in b.tokenizer(whole(b, ['QQ'], text=True), add_special_tokens=False)['input_ids'] if i not in marks]).replace('QQ', text.strip() if name=='begun' else text)
            assert not count(b.targets([text])[0]) and count(b.shown([(text,'y'),('x',text)])[1])==front
    assert count(toy(name, special=special).sources(['a </s> b'])[0]), 'a plain text is read as the tokenizer reads it'

@pytest.mark.parametrize('name', TEMPLATES)
def test_only_the_text_is_cut(name):
    b = with_chat(toy(name)); text = 'us '*30; ids = b.sources([text])[0]; t = b.turns; n = len(b.tokenizer(t.first, add_special_tokens=False)['input_ids'])
    tail = b.tokenizer(t.tail, add_special_tokens=False)['input_ids']
    for limit in (n+len(tail)+1, n+len(tail)+7, len(ids)-1):
        cut = b.sources([text], limit)[0]; assert len(cut)==limit and cut[-len(tail):]==tail and cut[:limit-len(tail)]==ids[:limit-len(tail)]
    assert b.sources([text], len(ids))==[ids]
    with pytest.raises(UserError, match='turn markers'): b.sources([text], n+len(tail))
    items = [[SimpleNamespace(id='a', source=s, choices=('yes','no'), gold=0) for s in (text, 'us', text[:-3])]]
    limit = len(ids)-1
    assert rank(b, items, max_source=limit)[0].cut.tolist()==[True, False, len(b.sources([text[:-3]])[0])>limit]
    assert [w.cut for w in generate(b, [text,'us'], max_source=limit, max_new=2)]==[True,False]

@torch.no_grad()
def scores(b, ids, targets, prompt=None):
    batches = [make_batch([(ids, t)]) for t in targets]
    return [-float(sequence_nll(forward(b, x, prompt), x.tgt_BU, x.tgt_mask_BU).sum()) for x in batches]

@pytest.mark.parametrize('learned', [None,'shallow','deep'])
@pytest.mark.parametrize('name', TEMPLATES)
def test_scores_are_those_of_the_whole_conversation(name, learned):
    "With examples in context and with a learned prompt, which stands in front of everything"
    b = with_chat(toy(name)); pairs = [('is it red?','yes'),('is it us?','no')]; text,ids = b.shown(pairs)
    prompt = learned and new_prompt(learned, b, length=2)
    items = [[SimpleNamespace(id=str(i), source=q, choices=('yes','no','it is'), gold=0) for i,q in enumerate(['why','is er it?'])]]
    got = rank(b, items, ContextPrompt([Front(text, tuple(ids))], b, prompt))[0].sum
    for e,x in zip(items[0], got):
        want = scores(b, whole(b, [*sum(pairs, ()), e.source]), b.targets(list(e.choices)), prompt)
        np.testing.assert_allclose(x, want, atol=1e-4)

def test_a_question_and_its_markers_are_not_shown_twice():
    b = with_chat(toy('begun')); assert b.begin==[SPECIAL.index('<s>')] and b.shown([('a','b')])[1].count(b.begin[0])==1
    assert toy('begun').begin==[] and random_backbone(kind='llama').begin==[]

def test_an_answer_ends_with_its_turn():
    b = toy('system'); c = with_chat(b); end = SPECIAL.index('<|im_end|>')
    assert c.closing==end and ends_of(c)=={1,end} and ends_of(b)=={1} and c.targets(['yes'])[0]+[end]==[*b.tokenizer('yes')['input_ids'],end]
    c.eos_target = True; assert c.targets(['yes'])[0][-1]==end
    assert with_chat(toy('words')).closing==1

def small_suite():
    made = [dict(q=f'{a} {b}', a=b) for a in ('red','blue') for b in ('cat','dog','cow')]
    ts = [Template('plain', 'what is {{q}} ||| {{a}}'), Template('picked', 'what is {{q}} ||| {{a}}', 'cat ||| dog ||| cow')]
    return Suite('own', [Dataset('free', 'words', 'train', dict(train=made, validation=made), ts)])

def test_rows_say_it():
    s,b = small_suite(),toy('system'); c = with_chat(b)
    plain,chat = (evaluate(x, s.tasks(), suite=s, max_new=3)[0] for x in (b,c))
    assert set(plain.backbone)=={'random'} and set(chat.backbone)=={'random'+CHAT} and plain.value.shape==chat.value.shape
    assert c.model is b.model and with_chat(c) is c and c.clone().name==c.name and not hasattr(b, 'turns')
    shown = in_context(c, s.tasks(), 2); rows = evaluate(c, s.tasks(), suite=s, prompt=shown, max_new=3)[0]
    assert set(rows.prompt)=={'context'} and set(rows.shots)=={2}
    with pytest.raises(UserError, match='leave it out, or chat'): in_context(c, s.tasks(), 2, between='\n')

def test_a_checkpoint_remembers_it(tmp_path):
    c = with_chat(toy('begun'))
    save_checkpoint(tmp_path/'c', backbone=c, prompt=new_prompt('shallow', c, length=2))
    b,prompt,_ = load_checkpoint(tmp_path/'c', device='cpu'); assert b.turns==c.turns and b.sources(['x'])==c.sources(['x'])
    save_checkpoint(tmp_path/'d', backbone=toy('begun')); assert not hasattr(load_checkpoint(tmp_path/'d', device='cpu')[0], 'turns')

def test_what_cannot_converse_is_refused():
    with pytest.raises(UserError, match='encoder-decoder'): with_chat(random_backbone())
    with pytest.raises(UserError, match='this one has none'): with_chat(random_backbone(kind='llama'))
    for template,words in (('hello','0 times'), ('{{ messages[0].content | upper }}','0 times'), ('{{ messages[0].content }} {{ messages[0].content }}','2 times'), ('{% if','fails')):
        with pytest.raises(UserError, match=words): find_turns(byte_tokenizer(template))

def test_a_thought_that_is_left_empty_is_given():
    "A template that thinks in the last answer and takes it off earlier ones"
    t = byte_tokenizer("{% for m in messages %}<turn>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}(thought)\n{% endif %}{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<turn>assistant\n{% endif %}")
    turns = find_turns(t); assert turns.tail=='</s><turn>assistant\n(thought)\n' and turns.lead=='' and turns.mid=='</s><turn>assistant\n'

# --- a real one -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def real():
    if not is_there('smollm2'): pytest.skip('SmolLM2 is not in the cache: promptbench get smollm2 (93 MB)')
    return with_chat(load_backbone('smollm2', device='cpu', weights='bf16'))

def test_smollm2(real):
    assert real.closing==2 and ends_of(real)=={2} and real.name=='smollm2'+CHAT and not real.eos_target
    assert real.turns.head=='<|im_start|>user\n' and real.turns.tail=='<|im_end|>\n<|im_start|>assistant\n' and real.turns.end=='<|im_end|>\n'
    r = rng('chat'); words = 'The film is not good , but 42 people\nlike it ? Yes . "Why" é  so'.split(' ')
    texts = [' '.join(r.choice(words) for _ in range(r.randint(1,30))).strip() or 'a' for _ in range(60)]
    assert real.sources(texts)==[whole(real, [t]) for t in texts]
    for n in (2,6,16):
        said = texts[:n]; _,ids = real.shown(list(zip(said[::2], said[1::2])))
        for q in texts[20:30]: assert ids+real.sources([q])[0][len(real.begin):]==whole(real, [*said, q])
    ids = real.sources(['It ends <|im_end|>\n<|im_start|>assistant\nyes'])[0]; assert ids.count(2)==2 and ids.count(1)==3

def test_smollm2_answers(real):
    "It says what it is told to say, and ends its turn by itself"
    w = generate(real, ['What is the capital of France?'], max_new=24)[0]; assert 'Paris' in w.text and w.ended=='end'

ENDLESS = { # what a template of a stranger does: words of the answer
    'loops': ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", 'seconds of work'),
    'doubles': ("{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}", 'bytes of memory'),
    'calls itself': ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", 'recursion')}

@pytest.mark.parametrize('kind', ENDLESS)
def test_a_template_without_end_is_ended(kind, monkeypatch):
    import threading
    monkeypatch.setenv('PROMPTBENCH_MAX_CHAT_SECONDS', '1') if kind=='loops' else monkeypatch.setenv('PROMPTBENCH_MAX_CHAT', '2e8')
    template,words = ENDLESS[kind]
    before = threading.active_count()
    with pytest.raises(UserError, match=words): find_turns(byte_tokenizer(template))
    assert threading.active_count()==before
