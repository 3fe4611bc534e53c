"A small suite, backbone and settings for the tests of the meta-learners"
import itertools, torch
from promptbench.model.backbone import random_backbone
from promptbench.prompt.inits import new_prompt
from promptbench.train.meta import MetaConfig, meta_train, meta_methods
from promptbench.data.suite import Dataset, Suite
from promptbench.data.templates import Template

CELLS = [(m,p) for m in meta_methods() for p in ('shallow','deep')]
WORDS = 'ann ben cat dan red blue green likes what color does it is the of say two one three'.split()

def suite():
    "Three datasets in memory: one long, one short, one whose second template skips half of the rows; targets of 'say' differ in length"
    def data(name, n, templates): return Dataset(name, 'toy', 'train', dict(train=[dict(who=WORDS[i%4], color=WORDS[4+(i*7+i//4)%3], odd=i%2) for i in range(n)]), templates)
    ask = Template('ask', '{{who}} likes {{color}} what color does {{who}} likes ||| {{color}}')
    say = Template('say', 'say the color of {{who}} {{color}} {% if odd %}two one three{% endif %} ||| {% if odd %}the{% else %}it is the{% endif %} {{color}}')
    half = Template('half', '{% if odd %}{{who}} {{color}} ||| one {{color}}{% else %} ||| {% endif %}')
    return Suite('toy', [data('long', 160, [ask,say]), data('short', 40, [say]), data('skips', 80, [ask,half])])

def cell(method='fomaml', prompt='shallow', **changes):
    "Backbone, prompt and settings of a small run, all from fixed seeds"
    config = MetaConfig(**dict(method=method, prompt=prompt, length=3, tasks=4, steps=3, batch_size=2, inner_lr=.03, lr=3e-3, prompt_lr=.03, dropout=0., seed=0)|changes)
    backbone = random_backbone(WORDS, seed=0)
    return backbone, new_prompt(prompt, backbone, length=config.length, seed=0), config

def run(method, prompt, stop=None, **changes):
    "Rows of a run on one thread, and what it trained"
    b,p,config = cell(method, prompt, **changes); was = torch.get_num_threads(); torch.set_num_threads(1)
    try: return list(itertools.islice(meta_train(b, p, suite().tasks('train'), config), stop)),b,p
    finally: torch.set_num_threads(was)
