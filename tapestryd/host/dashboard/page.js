// What this node is doing, live.
const events = new EventSource("/v1/events?status");
events.addEventListener("status", (event) => {
  document.querySelector("h1").textContent = JSON.parse(event.data).state;
});
