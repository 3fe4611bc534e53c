"A small suite and a stand-in for a backbone that needs neither torch nor transformers: quick to start in a second process"
import os, signal, time
from promptbench.data.suite import Dataset, Suite
from promptbench.data.templates import Template

class Stub:
    "What the cache asks of a backbone: one id per word"
    name,vocab,causal,eos_source,eos_target,eos_token_id,bos_token_id,around = 'stub',1000,True,True,True,1,None,()
    def __init__(self): self.tokenizer = self; self.vocab_ = {}
    def get_vocab(self): return dict(a=1)
    def sources(self, texts, limit): return [[len(w)+10*ord(w[0])%900 for w in t.split()[:limit]]+[1] for t in texts]
    targets = sources

def tasks(n=25):
    data = lambda name: Dataset(name, 'toy', 'train', dict(train=[dict(x=['red','blue','green'][i%3], i=i) for i in range(n)]), [Template('say', 'say {{x}} {{i}} ||| {{x}}'), Template('half', '{% if i%2 %}{{x}} ||| odd{% else %} ||| {% endif %}')])
    return Suite('toy', [data('one'), data('two')]).tasks()

class Trap(Template):
    "A template that does something terrible at record 25"
    def apply(self, record):
        if record['i']==25: {'kill':lambda: os.kill(os.getpid(), signal.SIGKILL), 'exit':lambda: os._exit(7), 'raise':lambda: 1/0, 'stop':lambda: time.sleep(60)}[self.metadata['what']]()
        return super().apply(record)

def trapped(what): return [*tasks(), *Suite('s', [Dataset('bad', 'c', 'train', dict(train=[dict(x='red', i=i) for i in range(50)]), [Trap('trap', 'say {{x}} ||| {{x}}', metadata=dict(what=what))])]).tasks()]

if __name__=='__main__':
    import sys
    from promptbench.train import rendered as page
    page.PART = 10; s = page.rendered(trapped('stop') if sys.argv[2]=='stop' else tasks(), Stub(), folder=sys.argv[1], workers=2); print(s.key, len(s), flush=True)
