// The order of search results: guides first, then the reference and the pages about how it works.
var Scorer = {
  score: ([page, , , , score]) =>
    score - (/^(reference\/|architecture|measurements|changes)/.test(page) ? 10 : 0),
  objNameMatch: 5,
  objPartialMatch: 1,
  objPrio: { 0: 0, 1: 0, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 10,
  term: 5,
  partialTerm: 2,
};
