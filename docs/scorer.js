// How the search of the site orders what it finds: guides before the names of the reference.
var Scorer = {
  objNameMatch: 5,
  objPartialMatch: 1,
  objPrio: { 0: 0, 1: 0, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 10,
  term: 5,
  partialTerm: 2,
};
