// A ballot's conveniences; the radio buttons in it are what counts. Without this script both questions stand on the
// page at once. With it they come one after the other, letters can be dragged to ranks, digits rank, and the file for
// use without a connection keeps its ballots in the browser.
"use strict";

const QUESTIONS = ["quality", "match"];

function setUpBallot(form, onGiven) {
  const cards = [...form.querySelectorAll(".candidate")];
  const hint = form.querySelector(".hint");
  const back = form.querySelector(".back");
  const submit = form.querySelector("[type=submit]");
  const board = form.querySelector(".board");
  let question;

  const radios = (card) => [...card.querySelectorAll(`fieldset[data-question=${question}] input`)];
  const rankOf = (card) => radios(card).find((radio) => radio.checked)?.value;

  function show(name) {
    question = name;
    for (const part of form.querySelectorAll("[data-question]")) part.hidden = part.dataset.question !== name;
    back.hidden = name === QUESTIONS[0];
    submit.textContent = name === QUESTIONS.at(-1) ? "Give this ballot" : "Next question";
    hint.textContent = "";
    drawBoard();
  }

  function rank(card, value) {
    const radio = radios(card).find((one) => one.value === String(value));
    if (!radio) return false;
    radio.checked = true;
    drawBoard();
    return true;
  }

  function focusOn(card) {
    if (!card) return submit.focus();
    (radios(card).find((radio) => radio.checked) ?? radios(card)[0]).focus();
  }

  // The board: a place for each rank, and the letters in them; two in one place are a tie.
  function drawBoard() {
    board.replaceChildren();
    board.hidden = false;
    board.style.setProperty("--ranks", cards.length);
    for (let value = 0; value <= cards.length; value++) {
      const slot = document.createElement("div");
      slot.className = "slot";
      slot.dataset.value = value;
      slot.dataset.label = ["drag", "1 · best"][value] ?? value;
      for (const card of cards.filter((one) => (rankOf(one) ?? "0") === String(value))) slot.append(chipOf(card));
      board.append(slot);
    }
  }

  function chipOf(card) {
    const chip = document.createElement("span");
    chip.className = "chip";
    chip.dataset.letter = chip.textContent = card.dataset.letter;
    const slotUnder = (event) => document.elementFromPoint(event.clientX, event.clientY)?.closest(".slot");
    const mark = (slot) => board.querySelectorAll(".slot").forEach((one) => one.classList.toggle("over", one === slot));
    chip.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      chip.setPointerCapture(event.pointerId);
      chip.classList.add("dragged");
    });
    chip.addEventListener("pointermove", (event) => {
      if (!chip.classList.contains("dragged")) return;
      chip.style.left = `${event.clientX}px`;
      chip.style.top = `${event.clientY}px`;
      mark(slotUnder(event));
    });
    chip.addEventListener("pointerup", (event) => {
      const slot = slotUnder(event);
      if (!slot || slot.dataset.value === "0" || !rank(card, slot.dataset.value)) drawBoard();
    });
    chip.addEventListener("pointercancel", drawBoard);
    return chip;
  }

  form.noValidate = true;
  form.addEventListener("change", drawBoard);
  form.addEventListener("keydown", (event) => {
    const card = event.target.closest?.(".candidate");
    if (event.key === "Enter" && card) {
      event.preventDefault(); // some browsers do not submit from a radio button
      form.requestSubmit(submit);
    } else if (card && /^[1-9]$/.test(event.key) && !event.ctrlKey && !event.metaKey && !event.altKey) {
      if (rank(card, event.key)) focusOn(cards[cards.indexOf(card) + 1]);
    }
  });
  back.addEventListener("click", () => { show(QUESTIONS[0]); focusOn(cards[0]); });
  form.addEventListener("submit", (event) => {
    const missing = cards.filter((card) => !rankOf(card));
    if (missing.length) {
      event.preventDefault();
      hint.textContent = `Please rank ${missing.map((card) => card.dataset.letter).join(", ")} too.`;
      return focusOn(missing[0]);
    }
    if (question !== QUESTIONS.at(-1)) {
      event.preventDefault();
      show(QUESTIONS[QUESTIONS.indexOf(question) + 1]);
      scrollTo({ top: 0 });
      return focusOn(cards[0]);
    }
    submit.disabled = true;
    if (onGiven) {
      event.preventDefault();
      onGiven(new FormData(form));
    }
  });
  addEventListener("pageshow", () => { submit.disabled = false; }); // also where the browser's Back brings it again
  return () => {
    show(QUESTIONS[0]);
    focusOn(cards[0]);
  };
}

// The file for use without a connection.
function setUpOffline(root) {
  const { study, token, rater } = root.dataset;
  const place = `ballots ${study} ${rater}`;
  const part = (id) => document.getElementById(id);
  const forms = [...document.querySelectorAll("form.ballot")];
  let kept = { given: [], revisions: {} }; // the second: how often each was taken back
  try { kept = JSON.parse(localStorage.getItem(place)) ?? kept; } catch { /* it begins anew */ }
  const { given, revisions } = kept;
  let shownAt;

  function keep() {
    try { localStorage.setItem(place, JSON.stringify(kept)); } catch { /* kept until the page is closed */ }
  }

  const begin = forms.map((form, slot) => setUpBallot(form, (data) => {
    const ranks = (question) => Object.fromEntries([...data.entries()]
      .filter(([name]) => name.startsWith(`${question}_`))
      .map(([name, value]) => [name.slice(question.length + 1), Number(value)]));
    const [quality, match, seconds] = [ranks("quality"), ranks("match"), (Date.now() - shownAt) / 1000];
    given.push({ slot, revision: revisions[slot] ?? 0, quality, match, seconds });
    keep();
    show();
  }));

  function show() {
    const slot = given.length, isDone = slot === forms.length;
    part("welcome").hidden = true;
    part("voting").hidden = isDone;
    part("done").hidden = !isDone;
    part("save").hidden = slot === 0;
    part("undo").hidden = slot === 0;
    part("number").textContent = slot + 1;
    part("given").value = slot;
    forms.forEach((form, index) => { form.hidden = index !== slot; });
    shownAt = Date.now();
    scrollTo({ top: 0 });
    if (!isDone) begin[slot]();
  }

  part("start").addEventListener("click", show);
  part("undo").addEventListener("click", () => {
    const { slot, revision } = given.pop();
    revisions[slot] = revision + 1;
    keep();
    forms[given.length].querySelector("[type=submit]").disabled = false;
    show();
  });
  part("save").addEventListener("click", () => {
    const text = JSON.stringify({ contract: "ballot_file/v1", study_id: study, token, ballots: given }, null, 1);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = `ballots_${study.slice(0, 8)}_rater_${Number(rater) + 1}.json`;
    link.click();
  });
}

const offline = document.getElementById("offline");
if (offline) setUpOffline(offline);
else document.querySelectorAll("form.ballot").forEach((form) => setUpBallot(form)());
