"A symbolic reader of the microworld: answers from the text and the world's data file alone, without the code that made the text"
import re
from collections import Counter
import yaml
from promptbench.base.core import data_dir

W = yaml.safe_load(data_dir('microworld','world.yaml').read_text(encoding='utf8'))
PEOPLE = W['men']+W['women']; SAME = {v:k for k,v in W['synonyms'].items()}; LISTS = dict(person=PEOPLE, place=W['places'], animal=list(W['animals']), job=list(W['jobs']), food=W['foods'], color=W['colors'])
POOLS = dict(p=PEOPLE, q=PEOPLE, a=PEOPLE, b=PEOPLE, pl=W['places'], c=W['colors'], o=W['objects']+list(SAME), f=W['foods'], e=W['feelings']+list(SAME), j=list(W['jobs']))

def pattern(form):
    "A wording with slots as a regular expression; a slot that comes twice must say the same"
    seen = set()
    def slot(m):
        s = m[1]
        if s in seen: return f'(?P={s})'
        seen.add(s); return f"(?P<{s}>{'|'.join(POOLS[s])})"
    return re.compile(re.sub(r'\\\{(\w+)\\\}', slot, re.escape(form)))
def read(form, s):
    m = form.fullmatch(s); return m and {k:SAME.get(v,v) for k,v in m.groupdict().items()}

SAY = [(k,pattern(f)) for k,d in W['facts'].items() for f in d['say']]
ASK = [(k,slot,pattern(f)) for k,d in W['facts'].items() for f,slot in d['ask']]
YESNO = [(k,pattern(f)) for k,d in W['facts'].items() for f in d['yesno']]
STEPS = [(i,j,pattern(s)) for i,(steps,_,_) in enumerate(W['scripts']) for j,s in enumerate(steps)]
EVENTS = [(e,pattern(e['say'])) for e in W['reasons']]
MOVES = [(m,pattern(m['say'])) for m in W['moves']]
SENSES = [(w,i,pattern(c)) for w,ss in W['senses'].items() for i,(_,cs) in enumerate(ss) for c in cs]

def low(s): s = s.strip(); return s if s.split(' ')[0] in PEOPLE else s[:1].lower()+s[1:]
def sentences(t): return [low(s) for s in re.split(r'(?<=[.?!])\s+', t.strip())]
def one(found):
    found = list(found); assert len(found)==1, found
    return found[0]
def facts(t): return [one({'k':k, **d} for k,f in SAY if (d:=read(f, s.rstrip('.')))) for s in sentences(t)]
def fact_of(s, forms=SAY): return one({'k':k, **d} for k,f in forms if (d:=read(f, low(s) if forms is SAY else s)))
def place(s): return one((i,j) for i,j,f in STEPS if read(f, low(s).rstrip('.')) is not None)

def judge(fs, c):
    "0 told otherwise, 1 told, 2 nothing of that kind told"
    about = [f for f in fs if f['k']==c['k'] and f['p']==c['p']]
    if not about: assert not any(f['k']==c['k'] for f in fs); return 2
    return int(all(one(about)[s]==v for s,v in c.items()))
def find(fs, q):
    return one(f[slot] for k,slot,form in ASK if (d:=read(form, q)) is not None for f in fs if f['k']==k and all(f[s]==v for s,v in d.items()))
COMPARED = {'in the same place':'pl', 'have things of the same color':'c', 'like the same food':'f', 'have the same job':'j', 'feel the same':'e'}
UNLIKE = {'is in a place of their own':'pl', 'has a thing of another color':'c', 'likes another food':'f', 'has another job':'j', 'feels different':'e'}
def alike(fs, q):
    a,b,rest = re.fullmatch(r'(?:Are|Do) (\w+) and (\w+) (.+)\?', q).groups(); by = {f['p']:f for f in fs}; return int(by[a][COMPARED[rest]]==by[b][COMPARED[rest]])
def lone(fs, q): s = UNLIKE[q[4:-1]]; n = Counter(f[s] for f in fs); return one(f['p'] for f in fs if n[f[s]]==1)
def how_many(fs, q): v = re.fullmatch(r'How many people (?:are in the|have something|like|work as a|are) (\w+)\?', q)[1]; return str(sum(v in f.values() for f in fs))
def known(q):
    kind,x = re.fullmatch(r'(Where does a|What does a) (.+)\?', q).groups(); x,verb = x.rsplit(' ',1)
    return {'work':lambda: W['jobs'][x][0], 'use':lambda: W['jobs'][x][1], 'eat':lambda: W['animals'][x][0], 'live':lambda: W['animals'][x][1]}[verb]()
def told(t, answer, choices, step):
    "The choice that belongs to the story of the text, `step` places after its last sentence"
    i,j = place(sentences(t)[-1]); return one(c for c in choices if place(c)==(i,j+step))
def fits(v, reason):
    "Of which of the two people of an event a reason is true, and both"
    e,d = one((e,d) for e,f in EVENTS if (d:=read(f, v))); assert reason in e['first']+e['second']
    return d['a'] if reason in e['first'] else d['b'],(d['a'],d['b'])
def because(s): return re.fullmatch(r'(.+) because (he|she) (.+)\.', s).groups()
def referred(t):
    v,pr,reason = because(t); who,_ = fits(v, reason); assert (who in W['men'])==(pr=='he'); return who
def meant(t):
    said,(v,pr,reason) = sentences(t)[:-1],because(sentences(t)[-1]); who,both = fits(v, reason)
    assert all((x in W['men'])==(pr=='he') for x in both)
    if said: assert one(s for s in said if s.endswith(' '+reason+'.')).split(' ')[0]==who
    return who
def holds(t):
    v,s = [x.rstrip('.') for x in sentences(t)]; m,d = one((m,d) for m,f in MOVES if (d:=read(f, v))); now = d[m['now']]; before = d['b' if m['now']=='a' else 'a']
    return before if 'no longer' in s else now
def praised(t):
    if m:=re.search(r'was not (\w+)', t): return int(m[1] in W['blame'])
    ws = set(re.findall(r'\w+', t.lower())); return int(bool(ws & set(W['praise'])))
def topic(t): return one(k for k,ws in W['topics'].items() if len(set(ws) & set(re.findall(r'\w+', t.lower())))>1)
def kind(w): return one(k for k,ws in LISTS.items() if w in ws)
def sense(word, s): return one(i for w,i,f in SENSES if w==word and read(f, low(s).rstrip('.')) is not None)
def infers(premise, hypothesis):
    p,rest = hypothesis.split(' ',1); j = one(f['j'] for f in facts(premise) if f['k']=='job' and f['p']==p); where,tool = W['jobs'][j]; return int(rest in (f'works in the {where}', f'uses a {tool}'))
def table(s): return dict(x.split(': ') for x in s.rstrip('.').split('; '))
def questions(d): return [one((k,tuple(sorted(x.items()))) for k,f in YESNO if (x:=read(f, q)) is not None) for q in (d['s1'],d['s2'])]
def whole(a, b): # two readings of yes/no questions: the same kind and nothing that differs
    (k,x),(l,y) = a,b; x,y = dict(x),dict(y); return int(k==l and all(x[s]==y[s] for s in x if s in y) and (x.keys()==y.keys()))

def story(t): return one({place(s)[0] for s in sentences(t)})
def written(d, kind):
    "Free text: whether the answer says what the data say"
    if kind=='table_to_text': return sorted(x for x in table(d['data']).values())==sorted(str(v) for k,v in fact_of(d['answer'].rstrip('.')).items() if k!='k')
    if kind=='words_to_text': place(d['answer']); ws = [w for w in low(d['answer']).rstrip('.').split() if w not in 'the a to of was in on it some'.split()]; return sorted(ws)==sorted(d['data'].split(', '))
    s = sentences(d['text']); a = sentences(d['answer']); return low(a[0])==s[1] and a[1]=='in the end '+s[5]

ANSWER = dict(find=lambda d: find(facts(d['passage']), d['question']), pick=lambda d: find(facts(d['passage']), d['question']), reason_of=lambda d: re.search(r'because (\w+) ', d['passage'])[1],
    common=lambda d: known(d['question']), recall=lambda d: known(d['question']), guess=lambda d: known(d['question']), feelings=lambda d: W['scripts'][story(d['passage'])][2], odd=lambda d: lone(facts(d['passage']), d['question']), count=lambda d: how_many(facts(d['passage']), d['question']),
    news=lambda d: topic(d['text']), about=lambda d: topic(d['text']), kind_of_word=lambda d: kind(d['word']), title=lambda d: W['scripts'][story(d['text'])][1], title_check=lambda d: W['scripts'][story(d['text'])][1],
    before=lambda d: told(d['step'], 0, d['choices'], -1), holder=lambda d: holds(d['text']), cause=lambda d: told(d['premise'], 0, d['choices'], 1 if d['relation']=='effect' else -1), ending=lambda d: told(d['context'], 0, d['choices'], 1), close=lambda d: told(d['context'], 0, d['choices'], 1),
    refers=lambda d: referred(d['passage']), social=lambda d: fits(re.sub(' because .*', '', d['passage'].rstrip('.')), d['question'][4:-1])[0], whom=lambda d: meant(d['text']), pronoun=lambda d: meant(d['text']), who_is=lambda d: meant(d['text']))
ANSWER['seek'] = ANSWER['find']
GUESS = dict(about='topic', title_check='title', pronoun='name', holder='name', whom='name', who_is='name') # the field that is judged, where it is not `guess`
claim = lambda where,field: lambda d: judge(facts(d[where]), fact_of(d[field]))
asked = lambda d: judge(facts(d['passage']), fact_of(d['question'], YESNO))
LABEL = dict(yes_no=asked, yes_no_maybe=asked, ask=asked, decide=asked, check=claim('passage','claim'), weigh=claim('passage','claim'), report=claim('scene','statement'), entail=claim('premise','hypothesis'), commit=claim('premise','hypothesis'),
    agree=lambda d: alike(facts(d['passage']), d['question']), compare=lambda d: alike(facts(d['passage']), d['question']), review=lambda d: praised(d['text']), return_visit=lambda d: praised(d['text']), infer=lambda d: infers(d['premise'], d['hypothesis']),
    turned=lambda d: int(fact_of(d['s1'].rstrip('.'))==fact_of(d['s2'].rstrip('.'))), reworded=lambda d: int(fact_of(d['s1'].rstrip('.'))==fact_of(d['s2'].rstrip('.'))), same_question=lambda d: int(questions(d)[0][0]==questions(d)[1][0] and consistent(*questions(d))),
    sense=lambda d: int(sense(d['word'], d['s1'])==sense(d['word'], d['s2'])))
LABEL['match'],LABEL['uses'] = LABEL['reworded'],LABEL['sense']
def consistent(a, b): x,y = dict(a[1]),dict(b[1]); return all(x[s]==y[s] for s in x if s in y)
FREE = ('table_to_text','words_to_text','gist')

YES = {'yes','true','good','positive','happy','five stars','agree'}; NO = {'no','false','bad','negative','unhappy','one star','disagree'}
def solve(kind, d, choices, turned):
    "The target a template must have, from the record's text; `turned`: it asks whether something is wrong"
    if kind in FREE: assert written(d, kind); return d['answer']
    if kind in ANSWER:
        a = ANSWER[kind](d)
        if choices is None: return a
        marks = dict(zip(d.get('choices',()), choices))
        if set(choices)<=YES|NO: label = int(d[GUESS.get(kind,'guess')]==a)
        else: return marks[a]
    else: label = LABEL[kind](d)
    if label==2: return one(c for c in choices if c in ('maybe','unknown'))
    return one(c for c in choices if c in (YES if label!=turned else NO))
