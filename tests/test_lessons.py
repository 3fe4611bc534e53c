"""What the lessons promise: in order, small, linked, with exercises and hidden solutions. That they *run*, solutions
included, is checked by the collector of pages in conftest.py, one item per lesson; browser/test_lab.py runs two in Lab."""
import importlib.util, re
from pathlib import Path
import nbformat, pytest

FOLDER = Path(__file__).resolve().parent.parent/'nbs'/'lessons'
LESSONS = sorted(FOLDER.glob('[0-9]*_*.ipynb'))   # other pages may lie beside them
ids = lambda p: p.stem
def cells(path, kind): return [c.source for c in nbformat.read(path, 4).cells if c.cell_type==kind]

def test_all_nine_and_a_beginning(): assert [p.name.split('_')[0] for p in LESSONS]==['00',*'123456789']
def test_they_are_collected(): assert not (FOLDER/'.notest').exists()

@pytest.mark.parametrize('path', LESSONS, ids=ids)
def test_a_lesson_is_light(path):
    nb = nbformat.read(path, 4); outputs = [o for c in nb.cells if c.cell_type=='code' for o in c.outputs]
    assert path.stat().st_size<=60*1024 and 'widgets' not in nb.metadata and not any('widget' in k for o in outputs for k in o.get('data', {}))

@pytest.mark.parametrize('path', LESSONS, ids=ids)
def test_a_lesson_can_be_read(path):
    text,code = cells(path, 'markdown'),cells(path, 'code'); assert re.match(r'# .+\n\n> .+', text[0]) and len(text)>=.6*len(code)
    assert max(len(c.splitlines()) for c in code)<=12 and not [c for c in code if c.startswith('#|')]

@pytest.mark.parametrize('path', LESSONS[1:], ids=ids)
def test_a_lesson_has_exercises_and_hidden_solutions(path):
    text = '\n'.join(cells(path, 'markdown')); asked = re.findall(r'^\d\. ', text.partition('## Exercises')[2], re.M)
    assert 2<=len(asked)<=3 and text.count('<details>')==text.count('</details>')==len(asked) and 'minutes' in text[:400]
    assert [f'<summary>Solution {i+1}</summary>' in text for i in range(len(asked))]==[True]*len(asked)

@pytest.mark.parametrize('path', LESSONS, ids=ids)
def test_titles_of_charts_are_computed(path):
    typed = [c for c in cells(path, 'code') if re.search(r'\btitle=["\'](?!.*\{)', c)]; assert not typed, typed

@pytest.mark.parametrize('path', [*LESSONS,FOLDER/'panels_gallery.ipynb'], ids=ids)
def test_code_is_not_cut_off(path):
    "The Lab wraps lines; elsewhere about 120 characters can be seen"
    long = [l for c in cells(path, 'code') for l in c.splitlines() if len(l)>125]; assert not long, long

@pytest.mark.parametrize('name,seeds', [('3_deep',4), ('4_starts',8), ('7_statistics',6), ('9_books',3)])
def test_what_depends_on_luck_is_told_over_seeds(name, seeds):
    "One tuned prompt differs between machines: charts that compare settings show several, and their titles are intervals over them"
    code = '\n'.join(cells(FOLDER/f'{name}.ipynb', 'code'))
    assert f'range({seeds})' in code and ('plot_seeds(' in code or 'over_seeds(' in code)

def test_the_gallery_is_kept_without_the_state_of_its_widgets():
    nb = nbformat.read(FOLDER/'panels_gallery.ipynb', 4)
    assert 'widgets' not in nb.metadata and not [c for c in nb.cells if c.cell_type=='code' and c.outputs]

@pytest.mark.parametrize('path', LESSONS, ids=ids)
def test_links_lead_somewhere(path):
    links = [l for t in cells(path, 'markdown') for l in re.findall(r'\]\(([^)]+)\)', re.sub(r'```.*?```', '', t, flags=re.S))]
    assert not [l for l in links if not l.startswith('http') and not (FOLDER/l).exists()]

def collector():
    "The conftest.py of the checkout, as a module of another name"
    spec = importlib.util.spec_from_file_location('collector', FOLDER.parents[1]/'conftest.py'); m = importlib.util.module_from_spec(spec); spec.loader.exec_module(m); return m

@pytest.mark.parametrize('code,fails', [('assert x == 1', False), ('assert x == 2', True)])
def test_solutions_run_after_the_lesson(code, fails, tmp_path):
    v4 = nbformat.v4; hidden = f'1. Ask\n\n<details><summary>Solution 1</summary>\n\n```python\n{code}\n```\nWhy.\n</details>'
    nbformat.write(v4.new_notebook(cells=[v4.new_markdown_cell(hidden), v4.new_code_cell('x = 1')]), tmp_path/'lesson.ipynb')
    assert bool(collector().run_page(tmp_path/'lesson.ipynb', [], []))==fails

# --- pages that need something fetched -------------------------------------------------------------------------------
PAGES = [p for p in FOLDER.parent.rglob('*.ipynb') if not p.name.startswith(('_','.')) and '.ipynb_checkpoints' not in p.parts]

def test_lessons_say_what_they_need():
    "A lesson that loads what must be fetched carries the tag by which the collector skips it, and tells the student how to get it"
    for path in LESSONS:
        loaded = set(re.findall(r'load_(?:backbone|suite)\(["\'](smollm2|bigbench)', '\n'.join(cells(path, 'code'))))
        assert set(collector().needed(path))==loaded, path
        assert all(f'promptbench get {name}' in '\n'.join(cells(path, 'markdown')) for name in loaded)

def test_tags_name_what_can_be_fetched():
    from promptbench.base.catalogue import RESOURCES
    assert {name for path in PAGES for name in collector().needed(path)}<=set(RESOURCES)

def needy(folder, code='raise SystemExit("it was run")'):
    cell = nbformat.v4.new_code_cell(code, metadata=dict(tags=['needs:smollm2']))
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), folder/'page.ipynb')
    return folder/'page.ipynb'

def test_a_page_is_skipped_where_what_it_needs_was_not_fetched(tmp_path, monkeypatch):
    "Not run and not failed: skipped, with the sentence that says how to get it"
    monkeypatch.setenv('PROMPTBENCH_CACHE', str(tmp_path/'empty')); page = needy(tmp_path); c = collector()
    item = c.NbItem.__new__(c.NbItem); item.path = page
    with pytest.raises(pytest.skip.Exception, match='smollm2 .* must be fetched first: promptbench get smollm2 '): item.runtest()
    monkeypatch.setattr('promptbench.data.fetch.is_there', lambda name: True); assert c.lacks(page) is None
    assert c.lacks(FOLDER/'1_words.ipynb') is None

def test_a_kernel_says_in_one_line_what_is_missing(tmp_path, monkeypatch):
    "What a student sees: the sentence and nothing else"
    from nbclient import NotebookClient
    monkeypatch.setenv('PROMPTBENCH_CACHE', str(tmp_path/'empty')); page = needy(tmp_path, 'from promptbench.data.fetch import fetched\nfetched("smollm2")')
    nb = nbformat.read(page, 4); NotebookClient(nb, timeout=120, kernel_name='python3', allow_errors=True).execute()
    said, = nb.cells[0].outputs; assert said.output_type=='error' and len(said.traceback)==1 and said.traceback[0].count('promptbench get smollm2')==1 and '\n' not in said.traceback[0]
