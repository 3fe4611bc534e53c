// The reader's choice of an earlier visit, before the first paint
try {
  var theme = localStorage.getItem('promptbench-theme');
  if (theme === 'dark' || theme === 'light') document.documentElement.dataset.theme = theme;
} catch (e) {}
