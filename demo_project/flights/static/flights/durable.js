/* The page about durable events: what its buttons do is sent without leaving the page. What comes of it is heard of. */
"use strict";

document.getElementById("act").addEventListener("submit", async function (event) {
  event.preventDefault();
  const button = event.submitter;
  const data = new FormData(event.target);
  data.append(button.name, button.value);
  button.disabled = true;
  try {
    await fetch(button.formAction, { method: "POST", body: data, redirect: "manual" });
  } catch (error) {
    console.info("It could not be sent: " + error.message);
  }
  button.disabled = false;
});
